"""How good predictions are, as `evaluate` says it, but without the Hub, which `evaluate.load` gets its metrics from."""

from importlib import import_module
from types import ModuleType

import evaluate
from datasets import Features, Value


class _Metric(evaluate.Metric):
    """A metric of one prediction beside one reference, each a number."""

    dtype = "int64"

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value(self.dtype), "references": Value(self.dtype)})
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=features)


class Accuracy(_Metric):
    """`accuracy`: the share of predictions that are right.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
        {'accuracy': 0.75}
    """

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(_optional("sklearn.metrics").accuracy_score(references, predictions))}


class F1(_Metric):
    """`f1`: the harmonic mean of precision and recall of class 1, out of 0 and 1. It is 0 where none is predicted.

    Example:
        >>> F1().compute(predictions=[1, 1, 0, 0], references=[1, 0, 1, 0])
        {'f1': 0.5}
    """

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"f1": float(_optional("sklearn.metrics").f1_score(references, predictions, zero_division=0))}


class MatthewsCorrelation(_Metric):
    """`matthews_correlation`: from -1 to 1; 0 is chance, as is a prediction that is always the same.

    Reference: Matthews, 1975, https://doi.org/10.1016/0005-2795(75)90109-9.

    Example:
        >>> MatthewsCorrelation().compute(predictions=[1, 1, 0, 0], references=[1, 1, 0, 0])
        {'matthews_correlation': 1.0}
    """

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        score = _optional("sklearn.metrics").matthews_corrcoef(references, predictions)
        return {"matthews_correlation": float(score)}


class Pearsonr(_Metric):
    """`pearsonr`: how nearly predictions lie on a rising line over the references, from -1 to 1.

    Where either is always the same, which leaves it undefined, it is 0, as the Matthews correlation is: a training that
    looks for its best model should not meet a NaN.

    Example:
        >>> round(Pearsonr().compute(predictions=[1.0, 2.0, 4.0], references=[1.0, 2.0, 3.0])["pearsonr"], 4)
        0.982
    """

    dtype = "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        stats = _optional("scipy.stats")
        undefined = _is_constant(predictions) or _is_constant(references)
        return {"pearsonr": 0.0 if undefined else float(stats.pearsonr(references, predictions).statistic)}


class Spearmanr(_Metric):
    """`spearmanr`: the Pearson correlation of the ranks, from -1 to 1. Where that is undefined, 0.

    Example:
        >>> Spearmanr().compute(predictions=[1.0, 2.0, 4.0], references=[1.0, 2.0, 3.0])
        {'spearmanr': 1.0}
    """

    dtype = "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        stats = _optional("scipy.stats")
        undefined = _is_constant(predictions) or _is_constant(references)
        return {"spearmanr": 0.0 if undefined else float(stats.spearmanr(references, predictions).statistic)}


GLUE_METRICS: dict[str, tuple[type[_Metric], ...]] = {
    "cola": (MatthewsCorrelation,),
    "sst2": (Accuracy,),
    "mrpc": (F1, Accuracy),
    "qqp": (F1, Accuracy),
    "stsb": (Pearsonr, Spearmanr),
    "mnli": (Accuracy,),
    "qnli": (Accuracy,),
    "rte": (Accuracy,),
    "wnli": (Accuracy,),
}
"""By the task's name in the data set nyu-mll/glue."""


class Glue(evaluate.Metric):
    """The metrics of one GLUE task, together; `glue_metric` makes one."""

    def __init__(self, config_name: str, **options):
        self._metrics = [metric() for metric in GLUE_METRICS[config_name]]
        super().__init__(config_name=config_name, **options)

    def _info(self) -> evaluate.MetricInfo:
        return self._metrics[0]._info()  # those of one task read numbers of one kind

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {k: v for metric in self._metrics for k, v in metric._compute(predictions, references).items()}


def glue_metric(task: str, **options) -> evaluate.Metric:
    """The metrics of one of the nine GLUE tasks, as `evaluate.load("glue", task)` gives them, but without the Hub.

    Reference: Wang et al., 2018, GLUE, https://arxiv.org/abs/1804.07461, table 1.

    Args:
        task: "cola" (Matthews correlation), "sst2", "mnli", "qnli", "rte", "wnli" (accuracy), "mrpc", "qqp" (F1 and
            accuracy) or "stsb" (Pearson and Spearman correlation). Both validation sets of MNLI are "mnli".
        **options: those of `evaluate.Metric`. In several processes that hold a share of the predictions each,
            `num_process`, `process_id` and an `experiment_id` that is the same in all: `compute` then returns the
            scores of all rows in process 0, and None in the others. `keep_in_memory=True` writes no file.

    Returns:
        A metric whose `compute(predictions=..., references=...)` takes two sequences of one number per row, class
        numbers or, for "stsb", scores, and returns a dict from names to floats between -1 and 1.

    Raises:
        ValueError: if there is no such task.
        ImportError: from `compute`, without scikit-learn and its SciPy.

    Example:
        >>> glue_metric("mrpc").compute(predictions=[1, 1, 0, 0], references=[1, 0, 0, 0])
        {'f1': 0.6666666666666666, 'accuracy': 0.75}
    """
    if task not in GLUE_METRICS:
        raise ValueError(f"There is no GLUE task {task!r}: the tasks are {', '.join(GLUE_METRICS)}.")
    return Glue(task, **options)


def _is_constant(values: list[float]) -> bool:
    return len(set(values)) == 1


def _optional(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"This metric needs {error.name}: pip install 'hf_distill[evaluation]'.") from error
