"""What launcher=kubernetes renders: valid by the API's own models, and what a pod is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from llmtrain.cli import main
from llmtrain.config.groups.cloud import KubernetesLauncherConfig
from llmtrain.config.plan import make_plan
from llmtrain.launch.kubernetes import render_jobset
from tests.support.expansion import expanded
from tests.support.runs import compose_run

GOLDEN = Path(__file__).with_name("jobset.golden.yaml")

NEEDED = ("launcher=kubernetes", "launcher.image=registry/llmtrain:1", "launcher.claim=shared")

FULL = (
    *NEEDED, "launcher.job_name=books", "launcher.nnodes=2", "launcher.gpus_per_node=4",
    "launcher.cpus_per_node=16", "launcher.mem=64Gi", "launcher.shm=8Gi",
    "launcher.namespace=research", "launcher.env_secret=keys", "launcher.image_pull_secret=pull",
    "launcher.priority_class=low", "launcher.labels={kueue.x-k8s.io/queue-name: research}",
    "launcher.node_selector={cloud.google.com/gke-accelerator: nvidia-l4}",
    'launcher.tolerations=[{key: nvidia.com/gpu, operator: Exists, effect: NoExecute,'
    ' tolerationSeconds: "30"}]',
    "launcher.max_restarts=2", "launcher.threads_per_process=3", "strategy=data",
    "data=text", "data.path=/shared/books", "run_dir=books/first", "checkpoint.grace_s=100.5",
)  # fmt: skip
"""Every setting once."""


def rendered(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    assert main(["train", *overrides, "--dry-run"]) == 0, capsys.readouterr().err
    document: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return document


def refused(capsys: pytest.CaptureFixture[str], *overrides: str, dry_run: bool = True) -> str:
    assert main(["train", *overrides, *(["--dry-run"] if dry_run else [])]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return " ".join(told.err.replace("│", " ").split())


def pod_of(jobset: dict[str, Any]) -> dict[str, Any]:
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod: dict[str, Any] = job["template"]["spec"]
    return pod


def assert_valid(jobset: dict[str, Any]) -> None:
    """Every field known, every type right, nothing missing.

    The models leave out what they do not know, and put in what has to be there.
    """
    model = JobsetV1alpha2JobSet.from_dict(jobset)
    assert model is not None and model.to_dict() == jobset


def test_the_text_is_as_agreed_and_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *FULL, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert told.out == GOLDEN.read_text()
    assert "8 on 2 hosts = dp_replicate 8" in told.err, "the plan is told, beside the answer"
    assert_valid(yaml.safe_load(told.out))


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("spec",), "failurePolice", {}),
        (("spec", "replicatedJobs", 0, "template", "spec"), "backoffLimits", 1),
        (("spec", "replicatedJobs", 0, "template", "spec"), "backoffLimit", "0"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec"), "volume", []),
        (
            ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0),
            "arg",
            [],
        ),
        (("spec", "failurePolicy", "rules", 0), "name", None),
    ],
)
def test_what_is_wrong_is_found(path: tuple[Any, ...], key: str, value: Any) -> None:
    jobset = yaml.safe_load(GOLDEN.read_text())
    inner: Any = jobset
    for step in path:
        inner = inner[step]
    inner[key] = value
    with pytest.raises((ValueError, AssertionError)):
        assert_valid(jobset)


HOSTILE = (
    "$(HOSTNAME)", "$$(HOSTNAME)", "$HOME `id`", "a 'b' \"c\"", "- x: {y}", "yes", "line\nbreak",
    "tab\tand trailing ", "# no comment", "ünï ☃", "\\n", "&a *b",
)  # fmt: skip


def test_a_pod_gets_what_was_typed() -> None:
    run = compose_run(*NEEDED)
    assert isinstance(run.launcher, KubernetesLauncherConfig)
    typed = [f"train.sample_prompt={value}" for value in HOSTILE]
    text, _ = render_jobset(run, run.launcher, make_plan(run, gpus=0), typed)
    jobset = yaml.safe_load(text)
    assert_valid(jobset)
    container = pod_of(jobset)["containers"][0]
    arguments = [expanded(a, {"HOSTNAME": "pod", "HOME": "/"}) for a in container["args"]]
    assert container["command"] == ["llmtrain"]
    assert arguments[1 : len(typed) + 1] == typed


def test_hosts_meet_at_the_first_pod() -> None:
    jobset = yaml.safe_load(GOLDEN.read_text())
    job = jobset["spec"]["replicatedJobs"][0]
    name = jobset["metadata"]["name"]
    first = f"{name}-{job['name']}-0-0.{name}"  # jobset.sigs.k8s.io: pod's name, headless service
    words = pod_of(jobset)["containers"][0]["args"]
    assert f"launcher.rdzv_endpoint={first}:29500" in words
    assert "launcher=torchrun" in words
    assert job["template"]["spec"]["completions"] == 2


def test_one_host_needs_no_meeting(capsys: pytest.CaptureFixture[str]) -> None:
    jobset = rendered(capsys, *NEEDED)
    assert_valid(jobset)
    words = pod_of(jobset)["containers"][0]["args"]
    assert "launcher=local" in words
    assert not [word for word in words if "rdzv" in word]


def test_runs_have_names_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    long = "experiment_name=A_rather.LONG name/of an experiment"
    first, second = (rendered(capsys, *NEEDED, long)["metadata"]["name"] for _ in range(2))
    assert first != second
    assert first.startswith("a-rather-long-name-o") and len(f"{first}-node-0-0-abcde") <= 63


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["launcher=kubernetes"], "launcher.image=REGISTRY/llmtrain:TAG"),
        (["launcher=kubernetes", "launcher.image=x"], "launcher.claim=NAME"),
        ([*NEEDED, "launcher.job_name=Books"], "launcher.job_name=Books must be lower-case"),
        ([*NEEDED, f"launcher.job_name={'x' * 60}"], "is longer than 48 characters"),
        ([*NEEDED, "launcher.mem=64GB"], "launcher.mem=64Gi"),
        ([*NEEDED, "launcher.user_id=0"], "try 1000"),
        ([*NEEDED, "launcher.mount_path=shared"], "must be an absolute folder"),
        ([*NEEDED, "launcher.tolerations=[{kee: x}]"], "has kee"),
        ([*NEEDED, "launcher.tolerations=[{key: a, operator: exists}]"], "Did you mean 'Exists'"),
        (
            [*NEEDED, "launcher.tolerations=[{key: a, effect: Never}]"],
            "effect=Never is not a choice",
        ),
        (
            [*NEEDED, 'launcher.tolerations=[{key: a, operator: Exists, tolerationSeconds: "3"}]'],
            "needs effect: NoExecute",
        ),
        ([*NEEDED, "run_dir=/home/me/run"], "is not in launcher.mount_path=/shared"),
        ([*NEEDED, "run_dir=../run"], "is not in launcher.mount_path=/shared"),
        ([*NEEDED, "train.device=cuda"], "launcher.gpus_per_node=8"),
        ([*NEEDED, "data=text", "data.path=-"], "cannot pass the standard input on"),
    ],
)
def test_what_cannot_work_is_refused(
    overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *overrides)


def test_it_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, *NEEDED, "train.sample_prompt=to be", dry_run=False)
    assert "starts nothing" in told
    assert "'train.sample_prompt=to be' --dry-run | kubectl apply -f -" in told
    # No line to type is given that would be refused.
    for words in (["launcher=kubernetes"], [*NEEDED, "train.device=cuda"]):
        assert "kubectl" not in refused(capsys, *words, dry_run=False)
    assert main(["verify", *NEEDED]) == 2
    assert "of one run, with --dry-run" in " ".join(capsys.readouterr().err.split())


def test_settings_that_hosts_would_not_get_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tmp_path / "experiment" / "mine.yaml"
    experiment.parent.mkdir()
    experiment.write_text("# @package _global_\n# Mine.\nlauncher:\n  image: mine\n")
    words = (*NEEDED, f"--config-dir={tmp_path}", "experiment=mine")
    assert "do not have this folder" in refused(capsys, *words)
