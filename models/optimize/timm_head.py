"""timm's classifier head as one op."""

from timm.layers.classifier import ClassifierHead

from mobilevit_kernels.models.optimize.head import OneOpHead


class OneOpTimmHead(OneOpHead, ClassifierHead):
    """``timm.layers.ClassifierHead`` as one op."""
