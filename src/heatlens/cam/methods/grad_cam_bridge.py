"""Methods of the grad-cam package (https://github.com/jacobgil/pytorch-grad-cam, MIT) as CAM_VERSION=grad-cam:NAME."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from heatlens.cam.methods.base import CamMethod, MethodOptions, MethodResult, Passes
from heatlens.cam.protocols import ModelAdapter, PatchGrid, Target
from heatlens.cam.targets import RandomDirection, random_image
from heatlens.errors import ConfigError, HeatlensError, ModelError, one_line
from heatlens.registry import GRAD_CAM_PREFIX, nearest_hint, plain_name

# Not methods for one image and one target: another shape of call, or no map.
_NOT_METHODS = {"BaseCAM", "ActivationsAndGradients", "AblationLayer", "AblationLayerVit", "AblationLayerFasterRCNN"}
# Their maps are made in the input's own size; all others make one on the target layer's grid.
_FRAME_SIZED = {"FullGrad", "SESS"}

_PROMPTLESS = {"EigenCAM", "FEM", "KPCA_CAM", "RandomCAM"}

_LOG = logging.getLogger(__name__)


class GradCamBridge(CamMethod):
    """One method of the grad-cam package, one forward (and backward) per question. -> maps (T, h, w).

    The package sees a model whose outputs are the scores of the image's targets. FinerCAM compares a target with
    the others of its image, so its map depends on what else is asked; with a single target it is Grad-CAM.
    The map is taken on the target layer's grid, before the package stretches it over the frame.
    """

    def __init__(self, name: str, options: MethodOptions | None = None) -> None:
        super().__init__(options)
        self._class = _find_class(name)
        self.name = GRAD_CAM_PREFIX + self._class.__name__  # type: ignore[misc]
        self.uses_target = self._class.__name__ not in _PROMPTLESS  # type: ignore[misc]

    def check(self, model: ModelAdapter) -> None:
        """Tries the method on noise: some cannot work on some models, and say so in their own words."""
        with self._instance(model, _Scores(model, [])) as cam:
            self.needs_live_layer = self._class.__name__ != "FullGrad" and _inner(cam)[0].uses_gradients  # type: ignore[misc]
        self._map(model, random_image(model)[0], [RandomDirection(0), RandomDirection(1)], 1)

    def grid(self, model: ModelAdapter) -> PatchGrid:
        if self._class.__name__ not in _FRAME_SIZED:
            return model.grid
        width, height = model.frame
        return PatchGrid(height, width, stride=(1.0, 1.0))

    def explain(self, images: Tensor, targets: Sequence[Sequence[Target]], passes: Passes) -> list[MethodResult]:
        model = passes.model
        grid = self.grid(model)
        results = []
        for image, mine in zip(images, targets, strict=True):
            with torch.no_grad():
                scores = _Scores(model, mine)(image[None])[0]
            maps = [self._map(model, image, mine, position) for position in range(len(mine))]
            stacked = torch.stack(maps) if maps else scores.new_zeros((0, grid.rows, grid.cols))
            results.append(MethodResult(stacked, scores))
        return results

    def _map(self, model: ModelAdapter, image: Tensor, targets: Sequence[Target], position: int) -> Tensor:
        """The map (h, w) of one target. ModelError with the package's own words when it fails."""
        try:
            return self._run(model, image, targets, position)
        except HeatlensError:
            raise
        except Exception as error:
            _LOG.debug("the grad-cam package failed", exc_info=True)
            raise ModelError(
                f"CAM_VERSION={self.name} does not work with this model at "
                f"TARGET_LAYER={model.target_layer_name}: {type(error).__name__}: {one_line(error)[:300]}"
            ) from None

    def _run(self, model: ModelAdapter, image: Tensor, targets: Sequence[Target], position: int) -> Tensor:
        grid = self.grid(model)
        raw: list[np.ndarray] = []
        with _numpy_seed(self.options.seed), self._instance(model, _Scores(model, targets)) as cam:
            for inner in _inner(cam):
                _listen(inner, raw)
            with (
                torch.enable_grad(),
                sdpa_kernel(SDPBackend.MATH),  # some need second derivatives, which fused kernels lack
                contextlib.redirect_stderr(io.StringIO()),  # a progress bar per image
            ):
                whole = self._call(cam, image, len(targets), position)
        found = whole[0] if self._class.__name__ in _FRAME_SIZED or not raw else raw[-1][0]
        if found.shape != (grid.rows, grid.cols):
            raise ModelError(f"CAM_VERSION={self.name}: its map is {found.shape}, not {(grid.rows, grid.cols)}")
        return torch.from_numpy(np.maximum(np.asarray(found, dtype=np.float32), 0)).to(image)

    def _call(self, cam: Any, image: Tensor, count: int, position: int) -> np.ndarray:
        if "target_idx" in inspect.signature(cam.forward).parameters and count > 1:
            return np.asarray(cam(image[None], None, target_idx=position))
        return np.asarray(cam(image[None], [lambda output: output[..., position]]))

    @contextlib.contextmanager
    def _instance(self, model: ModelAdapter, scores: nn.Module) -> Iterator[Any]:
        """The package's object, with its hooks and layer replacements undone afterwards."""
        options: dict[str, Any] = {}
        if self._class.__name__ == "AblationCAM" and model.tokens is not None:
            from pytorch_grad_cam import AblationLayerVit

            options["ablation_layer"] = AblationLayerVit()
        layers = [] if self._class.__name__ == "FullGrad" else [model.target_layer]
        places = [
            (parent, name)
            for parent in model.model.modules()
            for name, child in parent.named_children()
            if child is model.target_layer
        ]
        cam = self._class(scores, layers, reshape_transform=model.to_grid, **options)
        try:
            yield cam
        finally:
            for inner in _inner(cam):
                _release(inner.activations_and_grads)
            for parent, name in places:
                parent._modules[name] = model.target_layer


class _Scores(nn.Module):
    """The model as the package wants it: images -> the scores (B, T) of T targets."""

    def __init__(self, model: ModelAdapter, targets: Sequence[Target]) -> None:
        super().__init__()
        self.network = model.model
        self._adapter = model
        self._targets = targets

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not images.requires_grad:
            images = images.detach().requires_grad_(True)  # the weights are frozen; something has to be watched
        output = self._adapter.forward(images)
        if not self._targets:
            return output.new_zeros((len(images), 0))
        return torch.stack([target(output) for target in self._targets], dim=1)


def _inner(cam: Any) -> list[Any]:
    """The object itself, or the one or several that a meta-method is made of."""
    for name in ("base_cam", "base_cam_per_layer"):
        if hasattr(cam, name):
            found = getattr(cam, name)
            return list(found) if isinstance(found, list) else [found]
    return [cam]


def _release(captured: Any) -> None:
    """Remove the hooks and drop what they hold; the package's own way fails on gradients that are views."""
    for handle in captured.handles:
        handle.remove()
    for kept in (captured.handles, captured.activations, captured.gradients):
        kept.clear()


def _listen(cam: Any, raw: list[np.ndarray]) -> None:
    """Keep what ``get_cam_image`` returns: the map on the layer's grid."""
    original = cam.get_cam_image

    def get_cam_image(*args: Any, **kwargs: Any) -> Any:
        raw.append(np.asarray(original(*args, **kwargs)))
        return raw[-1]

    cam.get_cam_image = get_cam_image


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Some methods draw from numpy's global generator: seeded for the call, and given back as it was."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


def _find_class(name: str) -> type:
    """The package's class called ``name`` (case, hyphens and underscores ignored)."""
    wanted = name.removeprefix(GRAD_CAM_PREFIX)
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise ModelError(
            f"CAM_VERSION={GRAD_CAM_PREFIX}{wanted}: the grad-cam package cannot be imported ({one_line(error)}); "
            "pip install 'heatlens[grad-cam]', or grad-cam by itself"
        ) from None
    known = {
        one.__name__: one
        for one in vars(pytorch_grad_cam).values()
        if inspect.isclass(one) and one.__name__ not in _NOT_METHODS and _makes_maps(one)
    }
    for label, one in known.items():
        if plain_name(label) == plain_name(wanted):
            return one
    raise ConfigError(f"CAM_VERSION={GRAD_CAM_PREFIX}{wanted} is no such method; {nearest_hint(wanted, list(known))}")


def _makes_maps(one: type) -> bool:
    parameters = inspect.signature(one).parameters
    return {"model", "target_layers", "reshape_transform"} <= set(parameters)
