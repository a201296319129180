#!/usr/bin/env bash
#SBATCH --job-name=vqa_gen
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G
#SBATCH --time=5:00
#
# Stands for the stage behind the heat maps: downstream.sh MANIFEST RESULTS reads the table with pandas and opens every
# picture. In the image that made them, which has what is needed.

set -euo pipefail

manifest=$1 results=$2
[[ $VQA_MANIFEST == "$manifest" && $RESULTS_DIR == "$results" ]] # said in both ways

exec docker run --rm --network none --user "$(id -u):$(id -g)" --mount "type=bind,source=$results,target=$results,readonly" \
    "$DOWNSTREAM_IMAGE" python -c '
import sys
from pathlib import Path

import pandas
from PIL import Image

table = pandas.read_csv(sys.argv[1])
assert list(table.columns) == ["image_path", "question", "answer"], table.columns
results = Path(sys.argv[2])
pictures = 0
for name in table.image_path:
    path = results / name
    with Image.open(path) as picture:
        picture.load()
        assert picture.mode == "RGB" and min(picture.size) > 100, (path, picture.mode, picture.size)
    pictures += 1
print("rows", len(table), "pictures", pictures, "of", results)
' "$manifest" "$results"
