"""What a job's script does when a node has died, with functions that stand for Slurm's commands."""

import pytest
from helpers.common_sh import bash

JOB = {"SLURM_JOB_ID": "44", "SLURM_JOB_NUM_NODES": "3", "SLURMD_NODENAME": "n1"}
FIT = 'nodes=%s left=n[1-%s] program=(); fit_replicas %s; echo "${fewer[1]} $SLURM_NTASKS ${shape[1]}"'


def fit(nodes, tasks, left, *settings):
    """fit_replicas in a job of so many nodes and tasks, two on a node, and with so many nodes that are left."""
    job = {**JOB, "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": "2"}
    return bash(FIT % (left, left, " ".join(settings)), PARLE_HPC_RESTARTS="0", **job)


@pytest.mark.parametrize(
    ("job", "goes_on"),
    [
        ((3, 6, 2), "2 4 --nodes=2"),
        # a replica on two nodes: of the three that are left one is not needed
        ((4, 8, 3, "--replicas", "2"), "1 4 --nodes=2"),
        # there was room to spare
        ((3, 4, 2), "2 4 --nodes=2"),
    ],
)
def test_as_many_replicas_as_the_nodes_have_room_for(job, goes_on):
    """Each of as many ranks as before, on no more nodes than that."""
    done = fit(*job)
    assert done.stdout.split("\n")[0] == goes_on, done.stderr
    replicas, tasks, _ = map(int, goes_on.replace("--nodes=", "").split())
    ranks = tasks // replicas
    line = f"goes on with {replicas} x {ranks} ranks on n[1-{job[2]}], from the last checkpoint"
    assert done.stderr == f"parle_hpc: a node has died: {line}\n"


def test_without_room_for_one_replica_the_job_is_queued_again():
    done = fit(2, 4, 1, "--algorithm.name", "sgd")
    assert done.returncode == 1
    assert "a node has died, and n[1-1] is too little for a replica of 4 ranks, but started again 0" in done.stderr


@pytest.mark.parametrize(
    ("squeue", "srun", "lost"),
    [
        ("echo 2 n[1-2]", "false", True),
        # all answer: what ended was no node
        ("echo 3 n[1-3]", "true", False),
        # one is silent before Slurm has taken it out of the job
        ("[[ -s asked ]] && echo 2 n[1-2] || echo 3 n[1-3] | tee asked", "false", True),
        # Slurm itself is silent
        ("false", "false", False),
    ],
)
def test_a_node_has_died_when_slurm_has_taken_it_out_of_the_job(tmp_path, squeue, srun, lost):
    stand_ins = f"cd {tmp_path}; squeue() {{ {squeue}; }}; srun() {{ {srun}; }}; sleep() {{ :; }}"
    done = bash(f'{stand_ins}; has_lost_a_node && echo "$nodes $left"', **JOB)
    assert (done.returncode == 0) == lost, done.stderr
    assert done.stdout == "2 n[1-2]\n" * lost


def test_without_the_node_of_its_script_a_job_is_queued_again(tmp_path):
    """The third answer is the first without it; an empty one is that of a job that does not run."""
    (tmp_path / "answers").write_text("n1 n2\n\nn2 n3\n")
    stand_ins = f"""exec 3<{tmp_path}/answers; sleep() {{ echo -n .; }}
        squeue() {{ read -r REPLY <&3; echo $REPLY; }}
        scontrol() {{ if [[ $2 == hostnames ]]; then printf '%s\\n' $3; else echo "$@"; fi; }}"""
    done = bash(f"{stand_ins}; queue_again_without 41_3 n1")
    assert done.stdout == "...requeue 41_3\n", done.stderr
