"""A run as a JobSet (jobset.x-k8s.io/v1alpha2): one indexed Job whose pods are the hosts.

    JobSet NAME -> Job NAME-node-0 -> pods NAME-node-0-0, NAME-node-0-1, ...
                                      host 0 composes, freezes and has the output

Pods find their number in JOB_COMPLETION_INDEX, and pod 0 by the name that the JobSet's headless
service gives it. What ends how:

    exit code 2                      a mistake of the user's: all ends, nothing is tried again
    evicted, or 143 after a signal   saved, if there was time; the pod is made anew, uncounted
    anything else                    all pods are made anew, launcher.max_requeues times

New pods start when the old ones are gone, so that no two write to one run directory.
https://jobset.sigs.k8s.io, https://kubernetes.io/docs/concepts/workloads/controllers/job
"""

import math
from collections.abc import Sequence

from llmtrain.config.groups.cloud import NODE_JOB, KubernetesLauncherConfig
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.errors import EXIT_SIGTERM, EXIT_USER, require
from llmtrain.launch.remote import as_yaml, job_name, remote_run_dir, remote_words

END_S = 30
"""Seconds after checkpoint.grace_s that a pod has to end in."""

SHARED, SHM = "shared", "shm"

Tree = dict[str, object]


def render_jobset(
    run: RunConfig, launcher: KubernetesLauncherConfig, plan: Plan, overrides: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the JobSet as YAML, and the overrides that its pods are given.

    Raises:
        ConfigError: when something is missing that only the user can know.
    """
    require(
        launcher.image is not None,
        "launcher=kubernetes needs launcher.image=REGISTRY/llmtrain:TAG, an image that holds "
        "llmtrain; the Dockerfile builds one.",
    )
    require(
        launcher.claim is not None,
        "launcher=kubernetes needs launcher.claim=NAME, the PersistentVolumeClaim where the run "
        "directory is kept (`kubectl get pvc` lists them).",
    )
    name = job_name(run, launcher)
    run_dir = remote_run_dir(run, launcher, name)
    endpoint = f"{name}-{NODE_JOB}-0-0.{name}:{launcher.port}"
    words = remote_words(launcher, plan, overrides, run_dir, endpoint)
    metadata: Tree = {"name": name}
    if launcher.namespace is not None:
        metadata["namespace"] = launcher.namespace
    metadata["labels"] = {"app.kubernetes.io/name": "llmtrain", **launcher.labels}
    job: Tree = {
        "name": NODE_JOB,
        "replicas": 1,
        "template": {"spec": _job(run, launcher, plan, words)},
    }
    spec: Tree = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": _failure_policy(launcher),
        "replicatedJobs": [job],
    }
    jobset: Tree = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": spec,
    }
    return as_yaml(jobset), words


def _failure_policy(launcher: KubernetesLauncherConfig) -> Tree:
    mistake: Tree = {
        "name": "mistake",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "maxRestarts": launcher.max_requeues,
        "restartStrategy": "BlockingRecreate",
        "rules": [mistake],
    }


def _job(
    run: RunConfig, launcher: KubernetesLauncherConfig, plan: Plan, words: Sequence[str]
) -> Tree:
    def ended_with(action: str, code: int) -> Tree:
        return {
            "action": action,
            "onExitCodes": {"containerName": "llmtrain", "operator": "In", "values": [code]},
        }

    evicted: Tree = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    return {
        "completions": plan.nnodes,
        "parallelism": plan.nnodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                ended_with("FailJob", EXIT_USER), evicted, ended_with("Ignore", EXIT_SIGTERM),
            ]
        },
        "template": {
            "metadata": {"labels": {"app.kubernetes.io/name": "llmtrain"}},
            "spec": _pod(run, launcher, words),
        },
    }  # fmt: skip


def _pod(run: RunConfig, launcher: KubernetesLauncherConfig, words: Sequence[str]) -> Tree:
    shm: Tree = {"medium": "Memory"}
    if launcher.shm is not None:
        shm["sizeLimit"] = launcher.shm
    user = launcher.user_id
    pod: Tree = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(run.checkpoint.grace_s) + END_S,
        # Else llmtrain is process 1, to which the kernel passes no signal that it does not handle.
        "shareProcessNamespace": True,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }  # fmt: skip
    if launcher.priority_class is not None:
        pod["priorityClassName"] = launcher.priority_class
    if launcher.image_pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": launcher.image_pull_secret}]
    if launcher.node_selector:
        pod["nodeSelector"] = dict(launcher.node_selector)
    if launcher.tolerations:
        pod["tolerations"] = [_toleration(toleration) for toleration in launcher.tolerations]
    pod["containers"] = [_container(launcher, words)]
    pod["volumes"] = [
        {"name": SHARED, "persistentVolumeClaim": {"claimName": launcher.claim}},
        {"name": SHM, "emptyDir": shm},
    ]
    return pod


def _toleration(given: dict[str, str]) -> Tree:
    seconds = "tolerationSeconds"
    return {key: int(value) if key == seconds else value for key, value in given.items()}


def _container(launcher: KubernetesLauncherConfig, words: Sequence[str]) -> Tree:
    resources = {
        key: str(value)
        for key, value in {
            "cpu": launcher.cpus_per_node,
            "memory": launcher.mem,
            launcher.gpu_resource: launcher.gpus_per_node,
        }.items()
        if value
    }
    container: Tree = {
        "name": "llmtrain",
        "image": launcher.image,
        "command": ["llmtrain"],
        "args": [_literal(word) for word in ("train", *words)],
        "env": [
            {"name": "LLMTRAIN_CACHE", "value": f"{launcher.mount_path}/cache"},
            {"name": "HOME", "value": "/tmp"},
        ],
    }
    if launcher.env_secret is not None:
        container["envFrom"] = [{"secretRef": {"name": launcher.env_secret}}]
    if resources:
        container["resources"] = {"requests": resources, "limits": resources}
    container["securityContext"] = {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    container["volumeMounts"] = [
        {"name": SHARED, "mountPath": launcher.mount_path},
        {"name": SHM, "mountPath": "/dev/shm"},
    ]
    return container


def _literal(word: str) -> str:
    """Return `word` such that Kubernetes, which expands $(NAME) in arguments, leaves it as it is.

    https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container
    """
    return word.replace("$", "$$")
