"""The detectors that are compared with each other, and what their authors publish of them.

A method is a form of a detector: options of its folder's command line that hold with the published recipe and with ``--demo``. What
they leave open is as the recipe or the demo has it. With ENACT the clusters are ``region+``, regions along bands of rows that count
as their pixels; PnP-DETR's polled pixels are no map that could be walked in bands, and have ``region``.
"""

import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

# Deformable DETR's own improvements and Efficient DETR's, "top-k & BBR" in Sparse DETR's tables.
_PROPOSALS = ("--with_box_refine", "--two_stage", "--eff_query_init", "--eff_specific_head")
_NO_PROPOSALS = tuple(option.replace("--", "--no-", 1) for option in _PROPOSALS)
SHARES = {"1/3": "0.333", "0.5": "0.5", "0.65": "0.65"}  # of the pixels, that PnP-DETR polls


@dataclass(frozen=True)
class Published:
    """Precision on COCO's val2017 as its authors publish it.

    Attributes:
        AP: in %.
        backbone, epochs: of that training.
        note: what else to know.
    """

    AP: float
    backbone: str
    epochs: int
    note: str = ""

    def __str__(self) -> str:
        return f"{self.AP} ({', '.join(filter(None, (self.backbone, f'{self.epochs} epochs', self.note)))})"


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes:
        model: the name of what is trained. Methods of one model differ by their share alone.
        family: the detector that it is a form of; its methods have one colour.
        detector: its folder.
        options: of its command line.
        enact: whether keys are clustered.
        share: of the pixels, that PnP-DETR polls in evaluation, as its label and as its option's value.
        published: None where nothing is.
    """

    model: str
    family: str
    detector: str
    options: tuple[str, ...]
    enact: bool = False
    share: tuple[str, str] | None = None
    published: Published | None = None

    @property
    def name(self) -> str:
        return f"{self.model}, {self.share[0]}" if self.share else self.model

    @property
    def slug(self) -> str:
        """The model's name as a folder's."""
        return re.sub(r"[^a-z0-9.]+", "-", self.model.lower()).strip("-")


def _pair(family: str, detector: str, plain: Published, enact: Published) -> tuple[Method, Method]:
    """A detector of the paper, without ENACT and with it."""
    return (
        Method(family, family, detector, ("--clustering", "none"), published=plain),
        Method(f"{family} + ENACT", family, detector, ("--clustering", "region+"), enact=True, published=enact),
    )


def _pnp(clustering: str, published: dict[str, Published]) -> tuple[Method, ...]:
    """PnP-DETR at every share."""
    family, enact = "PnP-DETR", clustering != "none"
    model, options = family + " + ENACT" * enact, ("--clustering", clustering)
    return tuple(Method(model, family, family, options, enact, share, published.get(share[0])) for share in SHARES.items())


def _sparse(model: str, options: tuple[str, ...], published: Published) -> Method:
    return Method(model, "Deformable DETR", "Sparse-DETR", options, published=published)


_DENSE = ("--rho", "0", "--no-use_enc_aux_loss")
# Of DETR, Conditional DETR and Anchor DETR from ENACT's table 2, as its readme says on val2017; of PnP-DETR, Deformable DETR and
# Sparse DETR from Sparse DETR's readme; of DAC-DETR from its own.
METHODS = (
    *_pair("DETR", "DETR-ENACT", Published(40.6, "R50", 300), Published(39.0, "R50", 300)),
    *_pair("Conditional DETR", "Conditional-DETR-ENACT", Published(42.8, "R101", 50), Published(41.5, "R101", 50)),
    *_pair("Anchor DETR", "Anchor-DETR-ENACT", Published(44.3, "R50-DC5", 50), Published(42.9, "R50-DC5", 50)),
    *_pnp("none", {"1/3": Published(41.1, "R50", 500), "0.5": Published(41.8, "R50", 500)}),
    *_pnp("region", {}),
    _sparse("Deformable DETR", (*_NO_PROPOSALS, *_DENSE), Published(43.9, "R50", 50)),
    _sparse("Deformable DETR, top-k & BBR", (*_PROPOSALS, *_DENSE), Published(46.0, "R50", 50)),
    _sparse("Sparse DETR, \u03c1 = 0.1", (*_PROPOSALS, "--use_enc_aux_loss", "--rho", "0.1"), Published(45.3, "R50", 50)),
    _sparse("Sparse DETR, \u03c1 = 0.3", (*_PROPOSALS, "--use_enc_aux_loss", "--rho", "0.3"), Published(46.0, "R50", 50)),
    Method("DAC-DETR", "DAC-DETR", "DAC-DETR", (), published=Published(50.9, "R50", 12, "after NMS")),
)


def models(methods: Iterable[Method]) -> list[tuple[Method, ...]]:
    """The methods of each model together, since one is trained for all of them."""
    return [tuple(group) for _, group in groupby(methods, key=lambda method: method.model)]


def chosen(args: Namespace) -> list[Method]:
    """Those of ``--detector``."""
    return [method for method in METHODS if method.detector in args.detector]
