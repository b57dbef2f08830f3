from .config_files import parse_config
from .data import (
    DataCollatorForCausalLM,
    DataCollatorForMaskedLM,
    SeparateDocuments,
    count_tokens,
    encode_texts,
    load_corpus,
    load_labelled_texts,
    load_unlabelled_texts,
    pack_documents,
    truncate_documents,
)
from .deployment import Export, Predictor, export_model, load_predictor
from .evaluation import (
    Benchmark,
    benchmark_models,
    classification_metrics,
    glue_metric,
    plot_calibration,
    plot_quality_against_latency,
    plot_training_curves,
)
from .evaluation.split_invariance import check_split_invariance
from .hub import push_folder
from .progress import Progress, track
from .progress.training import show_progress
from .quiet import quiet_libraries
from .student import TrimmedVocabulary, describe, make_student, trim_vocabulary
from .tasks import (
    TextClassificationArguments,
    classify_texts,
    evaluate_text_classifier,
    train_text_classifier,
    write_report,
)
from .training import (
    DistillationTrainer,
    DistillationTrainingArguments,
    Loss,
    Needs,
    Stage,
    TrainingRun,
    add_teacher_targets,
    import_teacher_targets,
    join_teacher_targets,
    make_stages,
    model_identity,
    suggest_weights,
)
from .version import __version__

__all__ = [
    "Benchmark",
    "DataCollatorForCausalLM",
    "DataCollatorForMaskedLM",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "Export",
    "Loss",
    "Needs",
    "Predictor",
    "Progress",
    "SeparateDocuments",
    "Stage",
    "TextClassificationArguments",
    "TrainingRun",
    "TrimmedVocabulary",
    "__version__",
    "add_teacher_targets",
    "benchmark_models",
    "check_split_invariance",
    "classification_metrics",
    "classify_texts",
    "count_tokens",
    "describe",
    "encode_texts",
    "evaluate_text_classifier",
    "export_model",
    "glue_metric",
    "import_teacher_targets",
    "join_teacher_targets",
    "load_corpus",
    "load_labelled_texts",
    "load_predictor",
    "load_unlabelled_texts",
    "make_stages",
    "make_student",
    "model_identity",
    "pack_documents",
    "parse_config",
    "plot_calibration",
    "plot_quality_against_latency",
    "plot_training_curves",
    "push_folder",
    "quiet_libraries",
    "show_progress",
    "suggest_weights",
    "track",
    "train_text_classifier",
    "trim_vocabulary",
    "truncate_documents",
    "write_report",
]
