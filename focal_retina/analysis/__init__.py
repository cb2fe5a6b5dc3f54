from .report import write_detection_sheet, write_training_report

__all__ = ["write_detection_sheet", "write_training_report"]
