"""Trials on a real Ray: done, failed, killed, resumed, and on two nodes."""

import json
import math
import re
import time
from dataclasses import replace

import pytest
from helpers import is_running, wait_for
from ray.cluster_utils import Cluster

from focal_retina.commands import make_parser
from focal_retina.figures.loss_cdf import read_loss_cdf
from focal_retina.sweep.grid import CodeInputs
from focal_retina.sweep.results import LOSS_FOLDER, TrialResult, read_box_metrics
from focal_retina.sweep.runner import TrialRunner, connect


@pytest.fixture(scope="module")
def cluster():
    """Two Ray nodes on this machine, one core each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.second_node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    with connect(cluster.address):
        yield cluster
    cluster.shutdown()


@pytest.fixture
def run(make_runner):
    """Run trials; returns the results by row, and how many were finished at each poll."""

    def call(trials, **options):
        polled, end = [], time.monotonic() + 120

        def on_poll(results):
            assert time.monotonic() < end, "a slot hangs"
            polled.append(len(results))

        results = make_runner(**options).run(trials, on_poll)
        assert [x.row for x in results] == [x.row for x in trials]
        return {x.row: x for x in results}, polled

    return call


def starts_of(root, trial):
    return json.loads((root / trial.directory / "starts.json").read_text())


@pytest.mark.usefixtures("cluster")
def test_failures_are_retried_and_resumed_while_the_rest_goes_on(run, make_trial, tmp_path):
    names = {"fine": "", "fails": "fail", "recovers": "fail once", "killed": "kill once"}
    trials = {name: make_trial(name, behaviour) for name, behaviour in names.items()}
    results, polled = run(list(trials.values()), retries=1)

    ended = [(x.status, x.attempts) for x in results.values()]
    assert ended == [("done", 1), ("failed", 2), ("done", 2), ("done", 2)]
    assert results["fails"].error.startswith("exit status 3\n")
    assert results["fails"].error.endswith("the reason\nof the failure")
    for name in ("fine", "recovers", "killed"):
        # One that was interrupted goes on from its checkpoint: no iteration is missing or twice.
        lines = (tmp_path / trials[name].directory / "metrics.json").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == list(range(1, 11))
        assert results[name].metrics == {"AP": 10.0}
        assert results[name].seconds > 0 and results[name].peak_memory_mb > 1
        assert results[name].git_commit == "c0ffee"
        assert not list((tmp_path / trials[name].directory).glob("model_0*.pth"))
    assert (polled[0], polled[-1]) == (0, 4)

    # The same sweep again: only the failed one is tried again.
    again, polled = run(list(trials.values()), retries=0)
    assert polled[0] == 3
    assert again.pop("fails").attempts == 1
    assert [len(starts_of(tmp_path, t)) for t in trials.values()] == [1, 3, 2, 2]
    assert again == {name: x for name, x in results.items() if name != "fails"}


@pytest.mark.usefixtures("cluster")
def test_a_fatal_error_frees_its_slot_whatever_its_data_workers_do(run, make_trial, tmp_path):
    kinds = ("fail with workers", "kill with workers")
    # The second trial of each kind of error waits for the slot of the first.
    trials = [make_trial(f"{x[:4]}{i}", x) for x in kinds for i in range(2)]
    results, _ = run(trials, retries=0)
    assert {x.status for x in results.values()} == {"failed"}
    assert "RuntimeError: an error with" in results["fail0"].error
    for trial in trials:
        pids = json.loads((tmp_path / trial.directory / "workers.json").read_text())
        assert len(pids) == 2
        wait_for(lambda pids=pids: not any(map(is_running, pids)), 5)


@pytest.mark.usefixtures("cluster")
def test_a_result_serves_another_table_with_the_same_config(run, make_trial, tmp_path):
    trial = make_trial("a")
    run([trial])
    same_config = replace(trial, row="b", directory="trials/b")
    other_config = replace(trial, row="c", config_hash=trial.config_hash[:8] + "f" * 56)
    results, _ = run([same_config])
    assert results["b"].directory == trial.directory
    assert not (tmp_path / "trials" / "b").exists()
    run([other_config])
    assert len(starts_of(tmp_path, trial)) == 2


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("needed", [{"cpus_per_trial": 2}, {"gpus_per_trial": 0.5}])
def test_a_trial_that_no_machine_can_run_is_refused(run, make_trial, needed):
    with pytest.raises(ValueError, match="no machine has what a trial needs"):
        run([make_trial("a")], **needed)


@pytest.mark.usefixtures("cluster")
def test_losses_are_measured_once_and_failures_named(make_runner, make_trial, tmp_path):
    runner = make_runner()
    results = runner.run([make_trial("a"), make_trial("b")], lambda _: None)
    config = tmp_path / results[1].directory / "config.yaml"
    trained = config.read_text()
    config.write_text(trained.replace("WEIGHTS: ''", "WEIGHTS: fail"))
    assert runner.measure_losses(results) == [results[1]]
    folders = [tmp_path / x.directory / LOSS_FOLDER for x in results]
    assert "no such weights" in (folders[1] / "console.txt").read_text()
    assert read_loss_cdf(folders[0])["images"] == 3

    config.write_text(trained)
    (folders[1] / "loss_distribution.json").write_text('{"images": 3, "cut')
    assert runner.measure_losses(results) == []
    calls = [(folder / "calls.txt").read_text().splitlines() for folder in folders]
    weights = [str(tmp_path / x.directory / "model_final.pth") for x in results]
    assert calls == [[weights[0]], [weights[1]] * 2]


def test_the_commands_take_what_the_runner_gives_them(make_trial, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(TrialRunner, "_start", lambda *arguments: started.append(arguments[-1]))
    runner, trial = TrialRunner(root=tmp_path, inputs=CodeInputs(("a=b:c",))), make_trial("a")
    runner._train(trial)
    runner._measure(TrialResult("a", 1, "test", None, "done", directory=trial.directory))
    folder = tmp_path / trial.directory
    train, figure = (
        make_parser(name).parse_intermixed_args(list(map(str, arguments)))
        for _, _, name, *arguments in started
    )
    assert train.config_file == figure.config_file == str(folder / "config.yaml")
    assert train.register == figure.register == ["a=b:c"]
    assert train.resume and train.opts == ["OUTPUT_DIR", str(folder)]
    assert (figure.figure, figure.output) == ("loss-cdf", folder / LOSS_FOLDER)
    assert figure.opts == ["MODEL.WEIGHTS", str(folder / "model_final.pth")]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://[::1]:1", "localhost:99999", "no such host:6379"]
)
def test_an_address_where_nothing_listens_is_told_at_once(address):
    message = rf"--address {re.escape(address)}: no Ray cluster"
    with pytest.raises(ConnectionError, match=message), connect(address):
        raise AssertionError("it connected")


@pytest.mark.parametrize("prefix", ["bbox/", "val/bbox/"])
def test_metrics_are_those_of_the_tested_set_that_are_defined(tmp_path, prefix):
    row = {"iteration": 10, f"{prefix}AP": 0.0, f"{prefix}APs": math.nan, "other/bbox/AP75": 3.0}
    (tmp_path / "metrics.json").write_text(json.dumps(row) + "\n")
    assert read_box_metrics(tmp_path, "val") == {"AP": 0.0}


# The last one: it leaves the cluster with one node.
def test_two_nodes_of_a_cluster_and_the_loss_of_one(cluster, make_runner, make_trial, tmp_path):
    trials = [make_trial("a", "wait"), make_trial("b", "wait")]
    raylets = set()

    def lose_a_node_when_both_run(results):
        if not raylets and all((tmp_path / x.directory / "starts.json").exists() for x in trials):
            raylets.update(starts_of(tmp_path, x)[0]["raylet"] for x in trials)
            cluster.remove_node(cluster.second_node)
            for trial in trials:
                (tmp_path / trial.directory / "go").touch()

    results = make_runner(retries=1).run(trials, lose_a_node_when_both_run)
    assert len(raylets) == 2, "the trials did not run on two nodes"
    assert [x.status for x in results] == ["done", "done"]
    assert sorted(x.attempts for x in results) == [1, 2]
