"""One training in one process or several: Detectron2's ``--num-gpus``, or torchrun."""

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
from .setup import UserError, missing_extra

Main = Callable[[CfgNode], int]


def launch_training(
    main: Main,
    cfg: CfgNode,
    *,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> int:
    """Call ``main(cfg)`` in every process of the training.

    Under torchrun this is one of the processes already. Else ``num_gpus`` are started on this
    machine; on CPU they are processes without a GPU. CPU runs share the cores out.

    Args:
        main: returns an exit status. It is pickled, so it stands at the top of a module.
        cfg: see :func:`~focal_retina.engine.load_config`.
        num_gpus, num_machines, machine_rank, dist_url: as for Detectron2's ``launch``.

    Returns:
        The exit status, see :mod:`focal_retina.engine.interrupt`.

    Raises:
        UserError: more processes than GPUs, or two ways of starting processes at once.
    """
    several = num_gpus * num_machines > 1
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "LOCAL_RANK"} <= os.environ.keys():
        if several:
            message = "torchrun starts the processes: leave out --num-gpus and --num-machines"
            raise UserError(message)
        return _run_under_torchrun(main, cfg)
    if not several:
        return main(cfg)
    if num_machines > 1 and dist_url == "auto":
        raise UserError("--num-machines needs --dist-url, such as tcp://FIRST_MACHINE:PORT")
    if cfg.MODEL.DEVICE.startswith("cuda"):
        _check_gpus(num_gpus)
    else:
        # Where it sees a GPU, Detectron2 has the processes talk over NCCL, which cannot do CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    status = 0
    with forward_to_children() as received:
        try:
            machines = {"num_machines": num_machines, "machine_rank": machine_rank}
            launch(_run_started, num_gpus, **machines, dist_url=dist_url, args=(main, cfg))
        except ProcessExitedException as error:
            # Which says why on stderr, or was still starting when the signal came
            if not received and error.exit_code < 0:
                raise
            status = error.exit_code
    return exit_status_of(received[0]) if received else status


def _run_under_torchrun(main: Main, cfg: CfgNode) -> int:
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:
        _check_gpus(local_size)
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    _share_cores(cfg)
    status = main(cfg)
    torch.distributed.destroy_process_group()
    return status


def _run_started(main: Main, cfg: CfgNode) -> None:
    leave_ctrl_c_to_parent()
    _share_cores(cfg)
    if status := exit_status(lambda: main(cfg)):
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

    A :class:`UserError` and a missing optional library give 2 and Ctrl-C 130, each with one line on
    stderr: ``prog`` (default: the script's name) and the message, which for Ctrl-C is
    ``interrupted``.
    """
    status = 2
    try:
        return main() or 0
    except UserError as error:
        message = str(error)
    except ImportError as error:
        if (advice := missing_extra(error)) is None:
            raise
        message = advice
    except KeyboardInterrupt:
        status, message = 130, interrupted
    print(f"{prog or os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    return status
