"""The real pieces that a run is put together from, each replaceable by a fake in tests.

Heavy modules are imported inside the methods: a second call of a finished run needs no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatlens.batch.protocols import Explainer
from heatlens.errors import ConfigError
from heatlens.registry import find

if TYPE_CHECKING:
    from heatlens.config import Settings
    from heatlens.images.film import Film
    from heatlens.questions.plan import Plan
    from heatlens.questions.rows import Reader


class Parts:
    """Reader, plan, films, weights and model as the settings name them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def reader(self) -> Reader:
        """The data set's reader. DataSetError when its files are not there."""
        settings = self.settings
        reader: Reader = find("dataset", settings.dataset).load()(settings.dataset_path)
        return reader

    def image_root(self, reader: Reader) -> Path:
        """IMAGE_ROOT, or where the data set says its images are."""
        root = self.settings.image_root or reader.image_root()
        if root is None:
            raise ConfigError("IMAGE_ROOT is empty, and the data set does not say where its images are")
        return Path(root)

    def plan(self, reader: Reader, image_root: Path) -> Plan:
        """What is to be made, in data-set order."""
        from heatlens.questions.plan import make_plan
        from heatlens.questions.select import Selection

        settings = self.settings
        selection = Selection(
            split=settings.split,
            view=settings.view,
            question_types=settings.question_types,
            sample=settings.sample,
            seed=settings.seed,
            image_root=image_root,
        )
        return make_plan(
            reader,
            regions=settings.regions,
            prompt_template=settings.prompt_template,
            selection=selection,
            stop_after=settings.stop_after,
        )

    def open_film(self, image_root: Path, image_path: str) -> Film:
        """The decoded image. ItemError (locate, decode) when it cannot be used."""
        from heatlens.images.decode import read_film
        from heatlens.images.locate import locate_image

        return read_film(locate_image(image_root, image_path))

    def is_there(self, image_root: Path, image_path: str) -> bool:
        """Does the image's file exist now?"""
        from heatlens.errors import ItemError
        from heatlens.images.locate import locate_image

        try:
            locate_image(image_root, image_path)
        except (ItemError, OSError, ValueError):
            return False
        return True

    def weights(self) -> Mapping[str, Any]:
        """The weights' identity (model, revision, file, SHA-256) without building the model."""
        from heatlens.models.sources import weights_identity

        return weights_identity(self.settings.model, self.settings.model_revision or None)

    def resolved(self) -> tuple[str, int]:
        """Precision and batch size as the engine will use them."""
        from heatlens.cam.precision import resolve_batch_size, resolve_precision
        from heatlens.models.devices import resolve_device

        device = resolve_device(self.settings.device)
        return (
            resolve_precision(self.settings.precision, device),
            resolve_batch_size(self.settings.batch_size, device),
        )

    def explainer(self) -> Explainer:
        """The loaded model with its CAM method."""
        from heatlens.batch.explainer import ModelExplainer

        return ModelExplainer(self.settings)
