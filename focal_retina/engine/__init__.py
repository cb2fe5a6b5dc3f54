from .checkpoint import SafeCheckpointer, load_detector, load_trained_model
from .console import UserError, exit_status, set_up_logging, training_errors, user_errors
from .launch_and_interrupt import exit_status_of, launch_training
from .resume import only_training_in
from .setup import (
    check_config,
    check_output_dir,
    load_config,
    prepare_process,
    resolve_class_alpha,
    setup_config,
)
from .trainer import Trainer
