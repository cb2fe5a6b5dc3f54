"""From sources to results, what ``tools/predict.py`` does."""

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

from tqdm import tqdm

from ..engine import UserError
from .predictor import Predictor
from .sources import Frame, Source, UnreadableError
from .writers import ResultWriter


def predict_sources(
    predictor: Predictor,
    sources: Sequence[Source],
    writers: Sequence[ResultWriter],
    *,
    batch_size: int = 1,
    threshold: float = 0.0,
) -> int:
    """Run a predictor on everything, with a progress bar.

    A source that can't be read is reported and passed over. Whatever ends the run, the writers are
    closed, and hold what was done.

    Args:
        predictor: what finds.
        sources: what to look at.
        writers: where each frame and its detections go.
        batch_size: images that the predictor gets at once; those of several sources, too.
        threshold: detections score at least this.

    Returns:
        How many sources could not be read.

    Raises:
        UserError: the threshold is below that of the predictor.
    """
    lowest = predictor.meta.score_thresh
    if 0 < threshold < lowest:
        raise UserError(
            f"--threshold {threshold:g} is below the model's own, {lowest:g}: that is "
            "MODEL.RETINANET.SCORE_THRESH_TEST, of the export if the file is one"
        )
    unreadable: list[Source] = []
    lengths = [source.length() for source in sources]
    total = None if None in lengths else sum(x for x in lengths if x is not None)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tqdm(total=total, unit="image"))
        for writer in writers:
            stack.callback(writer.close)
        for batch in _batches(_frames(sources, unreadable), batch_size):
            for frame, instances in zip(
                batch, predictor.predict([x.image for x in batch]), strict=True
            ):
                kept = instances[instances.scores >= threshold]
                for writer in writers:
                    writer.write(frame, kept)
                progress.update()
    return len(unreadable)


def _frames(sources: Iterable[Source], unreadable: list[Source]) -> Iterator[Frame]:
    for source in sources:
        try:
            yield from source.frames()
        except UnreadableError as error:
            unreadable.append(source)
            tqdm.write(f"{source.name}: passed over: {error}", file=sys.stderr)


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    while batch := list(itertools.islice(frames, size)):
        yield batch
