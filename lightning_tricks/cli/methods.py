"""The methods of fusion by the names that the command line has for them."""

from __future__ import annotations

from lightning_tricks.cli.method_names import method_name
from lightning_tricks.fusion.aligned import Aligned
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.breadcrumbs import Breadcrumbs
from lightning_tricks.fusion.dare import Dare, DareTies
from lightning_tricks.fusion.fed_avg import FedAvg
from lightning_tricks.fusion.fed_opt import FedAdam, FedAvgM
from lightning_tricks.fusion.fisher import FisherWeighted
from lightning_tricks.fusion.greedy_soup import GreedySoup
from lightning_tricks.fusion.interpolate import Interpolate
from lightning_tricks.fusion.layerwise import Layerwise
from lightning_tricks.fusion.learned_soup import LearnedSoup
from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.fusion.model_stock import ModelStock
from lightning_tricks.fusion.nelder_mead_soup import NelderMeadSoup
from lightning_tricks.fusion.over_depth import OverDepth
from lightning_tricks.fusion.pruned import Pruned
from lightning_tricks.fusion.reg_mean import RegMean
from lightning_tricks.fusion.robust import Median, TrimmedMean
from lightning_tricks.fusion.similarity import SimilarityWeighted
from lightning_tricks.fusion.slerp import Slerp
from lightning_tricks.fusion.task_arithmetic import TaskArithmetic
from lightning_tricks.fusion.ties import Ties

__all__ = ["METHODS"]

# From their own files and not by the package's name, lest all techniques be loaded, and Lightning with them.
_KINDS: tuple[type[FusionMethod], ...] = (
    Aligned,
    Average,
    Breadcrumbs,
    Dare,
    DareTies,
    FedAdam,
    FedAvg,
    FedAvgM,
    FisherWeighted,
    GreedySoup,
    Interpolate,
    Layerwise,
    LearnedSoup,
    Median,
    ModelStock,
    NelderMeadSoup,
    OverDepth,
    Pruned,
    RegMean,
    SimilarityWeighted,
    Slerp,
    TaskArithmetic,
    Ties,
    TrimmedMean,
)
METHODS = {method_name(kind.__name__): kind for kind in _KINDS}
