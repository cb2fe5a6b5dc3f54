"""One training in one process or several: Detectron2's ``--num-gpus``, or torchrun."""

import argparse
import os
import sys
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from .interrupt import exit_status_of, forward_to_children, leave_ctrl_c_to_parent
from .setup import UserError

Main = Callable[[argparse.Namespace, CfgNode], int]


def launch_training(main: Main, args: argparse.Namespace, cfg: CfgNode) -> int:
    """Call ``main(args, cfg)`` in every process of the training.

    Under torchrun this is one of the processes already. Else ``--num-gpus`` are started on this
    machine; on CPU they are processes without a GPU. CPU runs share the cores out.

    Args:
        main: returns an exit status. It is pickled, so it stands at the top of a module.
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        The exit status, see :mod:`focal_retina.engine.interrupt`.

    Raises:
        UserError: more processes than GPUs, or two ways of starting processes at once.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "LOCAL_RANK"} <= os.environ.keys():
        return _run_under_torchrun(main, args, cfg)
    if args.num_gpus * args.num_machines <= 1:
        return main(args, cfg)
    return _start_processes(main, args, cfg)


def _run_under_torchrun(main: Main, args: argparse.Namespace, cfg: CfgNode) -> int:
    if args.num_gpus * args.num_machines > 1:
        raise UserError("torchrun starts the processes: leave out --num-gpus and --num-machines")
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:
        _check_gpus(local_size)
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    _share_cores(cfg)
    status = main(args, cfg)
    torch.distributed.destroy_process_group()
    return status


def _start_processes(main: Main, args: argparse.Namespace, cfg: CfgNode) -> int:
    if cfg.MODEL.DEVICE.startswith("cuda"):
        _check_gpus(args.num_gpus)
    else:
        # Where it sees a GPU, Detectron2 has the processes talk over NCCL, which cannot do CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    status = 0
    with forward_to_children() as received:
        try:
            launch(
                _run_started,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args, cfg),
            )
        except ProcessExitedException as error:
            # Which says why on stderr, or was still starting when the signal came
            if not received and error.exit_code < 0:
                raise
            status = error.exit_code
    return exit_status_of(received[0]) if received else status


def _run_started(main: Main, args: argparse.Namespace, cfg: CfgNode) -> None:
    leave_ctrl_c_to_parent()
    _share_cores(cfg)
    status = exit_status(lambda: main(args, cfg))
    if status:
        raise SystemExit(status)


def _check_gpus(num_processes: int) -> None:
    num_gpus = torch.cuda.device_count()
    if num_processes > num_gpus:
        raise UserError(f"{num_processes} processes on this machine need as many GPUs: {num_gpus}")


def _share_cores(cfg: CfgNode) -> None:
    """Processes that share cores stall each other if each brings a thread for every core."""
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // comm.get_local_size()))


def exit_status(
    main: Callable[[], int | None], interrupted: str = "interrupted", prog: str | None = None
) -> int:
    """Call ``main`` and return the process's exit status: its own if it returns one, else 0.

    A :class:`UserError` gives 2 and Ctrl-C 130, each with one line on stderr: ``prog`` (default:
    the script's name) and the message, which for Ctrl-C is ``interrupted``.
    """
    name = prog or os.path.basename(sys.argv[0])
    try:
        return main() or 0
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return 130
