#!/usr/bin/env bash
# `make bench`: everything that docs/performance.md and docs/evaluation.md measure again and again, one after the other.
# Run in the repository's root; HEATLENS_PYTHON names the Python. The machine should have nothing else to do.
set -euo pipefail

demo=configs/demo/exp_00_phantom.conf
held_out=demo/exp_01_held_out # of configs/ and of Bounding_Box/results/
held_out_crf=demo/exp_02_held_out_crf

python() {
    "$HEATLENS_PYTHON" "$@"
}

heatlens() {
    python -m heatlens.cli "$@"
}

# dense_crf: what a dense CRF costs and does, also to the held-out findings.
dense_crf() {
    local skip
    OMP_NUM_THREADS=1 python benchmarks/crf_cost.py
    for skip in true false; do
        heatlens run attn_map --config "$demo" --stop-after '' --skip-crf "$skip" --results-dir "$scratch/skip-$skip"
    done
    python benchmarks/crf_effect.py "$scratch/skip-true" "$scratch/skip-false"
    heatlens run bbox --config "configs/$held_out_crf.conf"
    heatlens evaluate "Bounding_Box/results/$held_out_crf" --truth phantom
    heatlens evaluate "Bounding_Box/results/$held_out" "Bounding_Box/results/$held_out_crf" --truth phantom
}

scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT

python benchmarks/cam_speed.py
OMP_NUM_THREADS=1 python benchmarks/steps.py
OMP_NUM_THREADS=1 python benchmarks/encoders.py
python benchmarks/batch_scale.py --seconds 20
python benchmarks/batch_throughput.py --kind engine --precision bf16 --images 2 --rounds 2
OMP_NUM_THREADS=1 python benchmarks/batch_throughput.py --kind runner --rounds 3
python benchmarks/interval_coverage.py
python benchmarks/pointing_demo.py
heatlens evaluate --sanity --config "$demo"
heatlens run bbox --config "configs/$held_out.conf"
heatlens evaluate "Bounding_Box/results/$held_out" --truth phantom --curves 50 --sanity
if python -c 'import pydensecrf.densecrf' 2>/dev/null; then
    dense_crf
else # an optional package, which has to be compiled
    printf 'bench: dense CRF is left out: its package is not installed (docs/methods.md)\n'
fi
