"""Models of the timm library, if installed, with an embedding layer in place of the classifier."""

import difflib

import torch
from torch import nn

from rayface.backbones.precision import full_precision

PREFIX = "timm/"


class TimmNet(nn.Module):
    """Face images (N, 3, S, S) in [-1, 1] -> raw embeddings (N, embedding_size), float32 under autocast too.

    The timm model with `embedding_size` outputs, then a batch norm whose scale stays 1, as in iresnet. Weights are
    random.

    Raises ValueError if timm is not installed or does not know the name.
    """

    def __init__(self, name: str, *, embedding_size: int, image_size: int, dropout: float) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError(
                f"backbone.name: {PREFIX}{name}: needs {error.name}: pip install 'rayface[timm]'"
            ) from error
        except RuntimeError as error:  # timm imports torchvision, which may belong to another build of torch
            raise ValueError(
                f"backbone.name: {PREFIX}{name}: timm cannot be imported ({error}): install the torchvision that "
                f"belongs to torch {torch.__version__}"
            ) from error
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.4)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else "see timm.list_models()"
            raise ValueError(f"backbone.name: {PREFIX}{name}: is not a model of timm {timm.__version__}: {hint}")
        options = {"pretrained": False, "num_classes": embedding_size, "drop_rate": dropout}
        try:
            self.net = timm.create_model(name, img_size=image_size, **options)
        except TypeError:  # convolutional networks have no img_size argument and take any size
            self.net = timm.create_model(name, **options)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.net(images)
        with full_precision(x):
            return self.features(x.to(self.features.weight.dtype))
