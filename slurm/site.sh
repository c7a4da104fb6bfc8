# shellcheck shell=bash
# What differs from site to site: edit it once, for all jobs of this folder. A variable that is exported where sbatch is
# typed wins over the value here.

# How the program is run:
#   environment   the virtual environment PARLE_HPC_VENV
#   modules       the site's PARLE_HPC_MODULES, and that environment on top of them where it exists
#   container     the image PARLE_HPC_IMAGE, by the host's srun
: "${PARLE_HPC_RUN:=environment}"
: "${PARLE_HPC_VENV:=$PARLE_HPC_ROOT/.venv}"
: "${PARLE_HPC_MODULES:=}" # e.g. "gcc/12 openmpi/4.1 cuda/12.4": the ones with which Horovod was built
: "${PARLE_HPC_IMAGE:=$PARLE_HPC_ROOT/parle_hpc.sif}"
: "${PARLE_HPC_IMAGE_OPTIONS:=}" # e.g. "--nv" (NVIDIA), "--rocm" (AMD), "--bind /scratch"

# Which of `srun --mpi=list` starts this MPI: pmix for Open MPI, pmi2 or cray_shasta for MPICH and its kin
: "${PARLE_HPC_MPI:=pmix}"

# Where python -m parle_hpc.data.prepare wrote the data sets, DATASET.h5; on a file system that all nodes see
: "${PARLE_HPC_DATA:=data}"

# A folder on each node's own disk or memory, to which the data set is copied; "" leaves it where it is
: "${PARLE_HPC_LOCAL=/tmp}"

# Seconds that a job which was signalled has to end its round and save, a little less than #SBATCH --signal gives it
: "${PARLE_HPC_GRACE:=270}"

# How often a job may start again: beyond that something is wrong, and nobody may be watching
: "${PARLE_HPC_RESTARTS:=20}"

# "set": a job goes on without a node that died, with the replicas for which the others have room; "": it is queued again.
# sbatch itself reads this variable, so export it where sbatch is typed
: "${SBATCH_NO_KILL:=}"

# The fabric. Take the lines of yours, and put in the names that `ip link` shows on a compute node.
#
# InfiniBand, with an Open MPI that has UCX (ompi_info | grep ucx), as PyPI's and most modules do
#   export OMPI_MCA_pml=ucx                        # end at the start where UCX is missing, and do not use TCP instead
#   export UCX_NET_DEVICES=mlx5_0:1                # the port, where a node has several
#   export NCCL_IB_HCA=mlx5 NCCL_SOCKET_IFNAME=ib0 # the gradients inside a replica, on GPUs
#
# Slingshot (HPE Cray), with Cray MPICH
#   PARLE_HPC_MPI=cray_shasta
#   export NCCL_NET="AWS Libfabric"                # needs the site's module of aws-ofi-nccl; without it NCCL takes TCP
#   export NCCL_SOCKET_IFNAME=hsn                  # the start of hsn0, hsn1, ...
#   export MPICH_GPU_SUPPORT_ENABLED=0             # MPI gets host memory alone; with 1 it wants a library of Cray's too
#   export FI_CXI_DISABLE_HOST_REGISTER=1          # these two: without them allocations of CUDA can hang
#   export FI_MR_CACHE_MONITOR=userfaultfd
# and in the image of containers/rocm.def with the host's MPI in the place of the image's; the versions are the site's
#   PARLE_HPC_IMAGE_OPTIONS="--rocm --bind /opt/cray,/var/spool/slurmd,/usr/lib64/libcxi.so.1"
#   mpich=/opt/cray/pe/mpich/8.1.29/ofi/gnu/9.1/lib-abi-mpich
#   export APPTAINERENV_LD_LIBRARY_PATH=$mpich:/opt/cray/pe/lib64:/opt/cray/libfabric/1.15.2.0/lib64
#
# Ethernet
#   export OMPI_MCA_btl_tcp_if_include=eth0        # or MPI tries every bridge and tunnel of the node too
#   export NCCL_SOCKET_IFNAME=eth0 NCCL_IB_DISABLE=1
