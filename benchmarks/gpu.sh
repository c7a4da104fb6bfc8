#!/usr/bin/env bash
# What a GPU shows and a CPU cannot, in one go that ends within --minutes and goes on where something fails:
#
#     bash benchmarks/gpu.sh [--page gpu.md] [--device cuda|cpu] [--minutes 9] [--sdist horovod-0.28.1.tar.gz] [--dry-run]
#
# python on PATH has torch and what setup.py names; Horovod is built here, with NCCL where torch has CUDA (--sdist: its
# source archive, where there is no network). --device cpu goes through the same commands in miniature, --dry-run prints
# them. The page has each command, how it ended, how long it took, and what it printed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

page=gpu.md device=cuda minutes=9 sdist='' dry=
while [ $# -gt 0 ]; do
    case $1 in
        --page) page=$2; shift ;;
        --device) device=$2; shift ;;
        --minutes) minutes=$2; shift ;;
        --sdist) sdist=$2; shift ;;
        --dry-run) dry=yes ;;
        *) echo "gpu.sh: $1 is not known; see its first lines" >&2; exit 2 ;;
    esac
    shift
done
case $device in cuda | cpu) ;; *) echo "gpu.sh: --device $device: must be cuda or cpu" >&2; exit 2 ;; esac

end=$((SECONDS + 60 * minutes)) failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# step LIMIT COMMAND...: at most LIMIT seconds of what is left, and on the page
step() {
    local limit=$1 left=$((end - SECONDS)) started=$SECONDS status
    shift
    if [ -n "$dry" ]; then
        echo "$*"
        return
    fi
    if [ "$left" -le 5 ]; then
        printf '\n## %s\n\nnot begun: no time left\n' "$*" >> "$page"
        return
    fi
    timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" > "$work/out" 2>&1
    status=$?
    {
        printf '\n## %s\n\nstatus %s, %s s\n\n' "$*" "$status" "$((SECONDS - started))"
        tail -n 60 "$work/out" | sed 's/^/    /'
    } >> "$page"
    echo "status $status, $((SECONDS - started)) s: $*"
    [ "$status" = 0 ] || failed=$((failed + 1))
}

train() { step 60 mpirun -np "$1" python -m parle_hpc.train --run.device "$device" --out "$work/$2" "${@:3}"; }

trainer() { step "$1" python benchmarks/trainer.py --device "$device" "${@:2}"; }

[ -n "$dry" ] || printf '# parle_hpc on a GPU, %s\n' "$(date -u +%F)" > "$page"
if [ "$device" = cuda ]; then
    step 20 nvidia-smi
    repeat=(--repeat 20) few=(--repeat 8) rounds=() wide=() network=wrn_28_10
else
    repeat=(--repeat 1) few=(--repeat 1) rounds=(--schedule.max_rounds 2) wide=(--batch 2) network=wrn_16_4
fi
python -c 'import horovod.torch as hvd; raise SystemExit(not hvd.mpi_built())' 2> "$work/none" ||
    step 300 python install/horovod.py ${sdist:+--sdist "$sdist"}

step 60 python -m pytest -q -n 0 tests/algorithms/test_devices.py tests/training/test_waits.py
train 1 digits "${rounds[@]}"
train 2 two --replicas 2 "${rounds[@]}"
train 4 four --replicas 2 "${rounds[@]}"
[ ! -e data/mnist.h5 ] || train 1 mnist --recipe lenet_mnist --schedule.max_rounds "${rounds[1]:-200}"
trainer 60 --cases lenet_mnist gpt_text "${repeat[@]}" --precision fp32 bf16
trainer 60 --cases "$network" "${few[@]}" "${wide[@]}" --precision bf16
trainer 60 --cases "$network" "${few[@]}" "${wide[@]}" --precision bf16 --algorithm sgd
step 60 python benchmarks/step.py --device "$device" "${few[@]}"
step 60 python benchmarks/input.py --device "$device" "${few[@]}" "${wide[@]}"
step 60 mpirun -np 2 python -m parle_hpc.plan --probe --machine "${page%.md}.toml" --run.device "$device"
trainer 150 --cases allcnn gpt_text "${few[@]}" "${wide[@]}" --precision bf16 --compile no yes
trainer 120 --cases "$network" "${few[@]}" "${wide[@]}" --precision bf16 --compile yes
[ -n "$dry" ] || echo "$failed failed; the page is $page"
