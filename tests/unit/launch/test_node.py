"""Which of several hosts this one is, and what is refused of them."""

import socket
from pathlib import Path

import pytest

from llmtrain.cli import main
from llmtrain.commands import train
from llmtrain.commands.compose import composer
from llmtrain.commands.train import digest
from llmtrain.config.groups.launcher import TorchrunLauncherConfig, split_endpoint
from llmtrain.config.plan import make_plan
from llmtrain.distributed.node import (
    interface_towards,
    is_this_machine,
    reachable_address,
    this_node,
)
from llmtrain.errors import ConfigError
from llmtrain.launch.local import launch
from tests.support.runs import SYNTHETIC, TINY, compose_run


def launcher(**given: object) -> TorchrunLauncherConfig:
    values = {"nnodes": 3, "rdzv_endpoint": "10.255.255.1:4000", **given}
    return TorchrunLauncherConfig(**values)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("node01", ("node01", 29500)),
        ("node01:80", ("node01", 80)),
        ("[fe80::1]:80", ("fe80::1", 80)),
        ("[fe80::1]", ("fe80::1", 29500)),
    ],
)
def test_an_endpoint(endpoint: str, expected: tuple[str, int]) -> None:
    assert split_endpoint(endpoint) == expected


@pytest.mark.parametrize("endpoint", ["", ":80", "a:b", "a:0", "a:65536", "a b:80", "tcp://a:80"])
def test_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT, such as node01:29500"):
        split_endpoint(endpoint)


def test_numbers_come_from_the_setting_then_the_environment() -> None:
    env = {"SLURM_NODEID": "2", "NODE_RANK": "1"}
    assert this_node(launcher(node_rank=0), env).rank == 0
    assert this_node(launcher(), env).rank == 1
    assert this_node(launcher(), {"SLURM_NODEID": "2"}).rank == 2
    node = this_node(launcher(), {})
    assert node.rank is None and not node.leads
    assert this_node(launcher(), {"NODE_RANK": "0"}).leads
    with pytest.raises(ConfigError, match=r"NODE_RANK=3: .* numbered from 0 to 2"):
        this_node(launcher(), {"NODE_RANK": "3"})
    with pytest.raises(ConfigError, match="rdzv_backend=static needs"):
        this_node(launcher(rdzv_backend="static"), {})


def test_the_first_host_is_the_one_that_has_the_address() -> None:
    assert is_this_machine("127.0.0.1") and is_this_machine("localhost")
    assert not is_this_machine("10.255.255.1") and not is_this_machine("no-such-host.invalid")
    assert this_node(launcher(rdzv_endpoint="127.0.0.1:4000"), {}).leads
    assert this_node(launcher(rdzv_endpoint="127.0.0.1:4000", node_rank=1), {}).leads is False
    assert reachable_address("127.0.0.1", 1) == (socket.AF_INET, "127.0.0.1")
    assert reachable_address("127.0.1.1", 2) is None  # what Debian calls a machine's own name
    assert interface_towards("127.0.0.1", 80) in {name for _, name in socket.if_nameindex()}
    assert interface_towards("no-such-host.invalid", 80) is None


def test_what_an_agent_is_told() -> None:
    words = this_node(launcher(node_rank=0, min_nodes=2), {}).words()
    told = dict(zip(words[::2], words[1::2], strict=False))
    assert told["--nnodes"] == "3" and told["--min-nodes"] == "2"
    assert told["--rdzv-endpoint"] == "10.255.255.1:4000" and words[-1] == "--leads"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rdzv_endpoint": None}, "launcher.rdzv_endpoint=FIRST_HOST:29500"),
        ({"node_rank": 3}, "launcher.node_rank=3 must be from 0 to 2"),
        ({"min_nodes": 4}, "launcher.min_nodes=4 must be from 1 to launcher.nnodes=3"),
        ({"rdzv_backend": "etcd"}, "launcher.rdzv_backend=etcd is not a choice"),
        ({"rdzv_backend": "static", "max_restarts": 1}, "a static rendezvous cannot be repeated"),
        ({"connect_timeout_s": 0.0}, "launcher.connect_timeout_s=0.0 must be positive"),
    ],
)
def test_refusals(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launcher(**given)
    assert told in str(caught.value)


HOSTS = (*TINY, *SYNTHETIC, "launcher=torchrun", "launcher.rdzv_endpoint=a:1", "launcher.nnodes=2")


def test_processes_are_shared_out() -> None:
    run = compose_run(*HOSTS, "strategy=hybrid", "strategy.tp=2", "strategy.pp=2")
    plan = make_plan(run, gpus=0)
    assert (plan.nnodes, plan.world_size, plan.nproc_per_node) == (2, 16, 8)
    run = compose_run(*HOSTS, "strategy=data", "launcher.nproc_per_node=4")
    assert make_plan(run, gpus=4).world_size == 8
    with pytest.raises(ConfigError, match="processes need a GPU each, and this machine has 2"):
        make_plan(run, gpus=2)
    odd = compose_run(*HOSTS, "launcher.nnodes=3", "strategy=model", "strategy.tp=4")
    with pytest.raises(ConfigError, match=r"3 hosts cannot share the 4 processes .*nnodes=2"):
        make_plan(odd, gpus=0)
    served = compose_run(*HOSTS, "strategy=data", "sync=ssp", "launcher.nproc_per_node=1")
    with pytest.raises(ConfigError, match="server and replicas on one machine"):
        make_plan(served, gpus=0)


def test_one_host_of_several_never_trains_alone(tmp_path: Path) -> None:
    run = compose_run(*HOSTS, "strategy=data", "launcher.nproc_per_node=1")
    with pytest.raises(AssertionError, match="would train alone"):
        launch(tmp_path, run, make_plan(run, gpus=0))
    assert not list(tmp_path.iterdir())


def test_all_hosts_need_the_same_settings_but_their_number_and_folder() -> None:
    with composer("train", ()) as hydra:
        one, same, other = (
            digest(hydra.compose([*HOSTS, "strategy=data", *words]).config)
            for words in (
                ["launcher.node_rank=0", "run_dir=x"], ["launcher.node_rank=1"], ["train.seed=9"],
            )
        )  # fmt: skip
    assert one == same != other


def test_a_taken_port_is_named() -> None:
    from llmtrain.distributed.hosts import serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}: .*in use"):
            serve("127.0.0.1", port, (socket.AF_INET, "127.0.0.1"))


def test_a_taken_port_leaves_no_run_and_changes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = tmp_path / "deep" / "new", tmp_path / "old"
    old.mkdir()
    (old / "config.yaml").write_text("of an earlier start")
    words = ["train", *TINY, *SYNTHETIC, "strategy=data", "launcher=torchrun", "launcher.nnodes=2",
             "launcher.node_rank=0", "launcher.nproc_per_node=1"]  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words.append(f"launcher.rdzv_endpoint=localhost:{taken.getsockname()[1]}")
        for folder in (new, old):
            assert main([*words, f"run_dir={folder}"]) == 2
            assert "cannot be had on this machine (in use)" in capsys.readouterr().err
    assert not new.exists() and not (old / "plan.json").exists()
    assert (old / "config.yaml").read_text() == "of an earlier start"

    # Taken between the look and the agent's own: its refusal is told by the exit code alone.
    monkeypatch.setattr(train, "launch", lambda *_, **__: 2)
    assert main([*words, f"run_dir={new}"]) == main([*words, f"run_dir={old}"]) == 2
    assert not new.exists() and old.is_dir()


def test_the_store_is_out_of_reach_of_other_addresses() -> None:
    from llmtrain.distributed.hosts import reach, serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = serve("127.0.0.1", port, (socket.AF_INET, "127.0.0.1"))
    reach("127.0.0.1", port, 5.0).set("a", "b")
    assert store.get("a") == b"b"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=2)
