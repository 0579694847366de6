"""The levels of bench.compare: which cases they hold, and that token mixers, models and steps compute the same."""

import pytest
import torch

from bench import compare
from bench.levels import LARGE_SHAPES, LEVELS
from bench.token_mixers import MixerStage, mixer_problem, mixer_stages
from bench.training import TRAINING_STEP, training_problem
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.engines import engines
from mobilevit_kernels.benchmark.gate import Gate
from mobilevit_kernels.benchmark.inference import inference_problem, model_flops
from mobilevit_kernels.benchmark.networks import LAYOUT_NAMES, make_networks

ONNXRUNTIME = engines(["onnxruntime"])


def selected(*arguments):
    options = compare.parse_arguments(list(arguments))
    peers = engines(options.peers, options.compile_modes)
    return {level: compare.select_cases(options, level, peers) for level in options.levels}


def test_peers_bring_the_large_shapes_and_autocast_models():
    chosen = selected("ops", "models", "--peers", "onnxruntime")
    targets = [case.target for case in chosen["ops"]]
    assert all(shape in targets for shape in LARGE_SHAPES)
    assert {case.direction for case in chosen["models"]} == {"inference"}
    assert all(case.engines for cases in chosen.values() for case in cases)


def test_without_peers_ops_and_models_are_those_of_the_committed_results():
    chosen = selected("ops", "models")
    assert not any(case.target in LARGE_SHAPES for case in chosen["ops"])
    assert {case.direction for case in chosen["models"]} == {"forward"}


def test_directions_apply_where_a_level_has_a_choice():
    chosen = selected("ops", "training", "--directions", "forward")
    assert {case.direction for case in chosen["ops"]} == {"forward"}
    assert {case.direction for case in chosen["training"]} == {TRAINING_STEP}


def test_smoke_is_one_batch_of_a_few_targets():
    for cases in selected(*LEVELS, "--smoke").values():
        assert {case.batch for case in cases} == {1}
        assert len({case.target for case in cases}) <= 2


def test_one_name_for_several_levels_is_an_error():
    with pytest.raises(SystemExit):
        compare.parse_arguments(["ops", "models", "--name", "mine"])


def test_mixer_stages_are_those_of_the_configs():
    assert mixer_stages(["mobilevit_s"]) == (
        MixerStage("mobilevit_s", 2, 144, 2, 32),
        MixerStage("mobilevit_s", 3, 192, 4, 16),
        MixerStage("mobilevit_s", 4, 240, 3, 8),
    )


@pytest.mark.parametrize("arguments", [(), ("--peers", "onnxruntime")], ids=["eager", "peers"])
def test_no_two_cases_of_a_level_have_one_name(arguments):
    for cases in selected(*LEVELS, *arguments).values():
        assert len({str(case) for case in cases}) == len(cases)


@pytest.mark.parametrize("model", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_mixer_computes_the_same(model, dtype):
    pytest.importorskip("timm")
    problem = mixer_problem(mixer_stages([model])[-1], 2, dtype, image_side=128)
    assert problem.truth.results("inference")[0].shape == (2, mixer_stages([model])[-1].channels, 4, 4)
    gate = Gate(problem, dtype, "inference")
    for candidate in problem.candidates.values():
        assert gate.check(candidate).passed, candidate.name


def test_mixer_flops_are_the_multiply_adds_of_its_matrices():
    stage = MixerStage("mobilevit_xxs", 4, 8, 1, 8)
    tokens, group = 2 * 16, 4
    linear = tokens * (8 * 24 + 8 * 8 + 2 * 8 * 16)
    assert stage.flops(batch=2, side=4) == 2 * (linear + 2 * tokens * group * 8)


def test_model_flops_are_the_published_multiply_adds():
    """MobileViT-S has about 2.0 GMACs at 256 pixels (arXiv 2110.02178, table 3)."""
    flops = model_flops(make_networks("mobilevit_s"), torch.rand(1, 3, 256, 256))
    assert flops / 2 == pytest.approx(2.0e9, rel=0.05)


def test_inference_has_eager_ours_beside_the_optimized_one_and_reasons_for_the_absent():
    problem = inference_problem("mobilevit_xxs", 1, torch.bfloat16, 64, ONNXRUNTIME)
    assert set(problem.candidates) == {OURS, "ours eager", *LAYOUT_NAMES}
    assert "ONNX Runtime" in problem.absent
    gate = Gate(problem, torch.bfloat16, "inference")
    assert gate.check().passed
    assert gate.same_top1() == 1.0


def test_a_training_step_is_checked_by_gradients_and_changes_only_its_own_weights():
    problem = training_problem("mobilevit_xxs", 1, torch.float32, 64, ONNXRUNTIME)
    assert problem.absent == {"ONNX Runtime": "inference only"}
    gate = Gate(problem, torch.float32, TRAINING_STEP)
    step = problem.ours.runner(TRAINING_STEP)
    losses = [step().item() for _ in range(3)]
    assert losses[2] < losses[0]
    assert gate.check().passed
