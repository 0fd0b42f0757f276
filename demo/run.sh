#!/usr/bin/env bash
# The whole of NaViT-CLIP on the stamps beside this file: shards in, a model for transformers out.
# `make demo` runs it in the project's environment; it can be run again, and starts over.
set -euo pipefail
cd "$(dirname "$0")/.."
run=runs/demo
# Matrices this small gain nothing from threads, and threads that share cores with others wait for each other.
export OMP_NUM_THREADS=1
rm -rf "$run"

say() { printf '\n\033[1m%s\033[0m\n' "$1"; }

say '1  A tokenizer from the captions'
navit-clip tokenizer train demo/stamps-train.tar "$run/tokenizer" --vocab-size 1162

say '2  Both towers, trained together on packed images'
navit-clip train configs/run/demo.yaml

say '3  Retrieval, and zero-shot classification by category, on held-out stamps'
navit-clip eval --model "$run" --suite configs/eval/stamps.yaml

say '4  Out to Hugging Face, verified'
navit-clip export "$run" "$run/export"

say '5  Back in a process that imports transformers and nothing of this project'
python demo/reload.py "$run/export" demo/stamps-test.tar

say '6  The report'
navit-clip report "$run"

say 'Done'
cat <<END
  report        $run/report.html
  model         $run/export  (AutoModel.from_pretrained)
  checkpoints   $run/checkpoints
                (its loss on the 98 held-out stamps may rise again at the end: the others have come forty times)
  log, metrics  $run/out.log, $run/metrics.jsonl; tensorboard --logdir $run

Next, your own shards (tars of NAME.jpg and NAME.txt, as img2dataset writes them):
  source .venv/bin/activate
  navit-clip tokenizer train 'SHARDS-{0000..0009}.tar' runs/small/tokenizer --vocab-size 8192
  OMP_NUM_THREADS=1 navit-clip train configs/run/small.yaml 'data.shards=["SHARDS-{0000..0009}.tar"]'
  navit-clip export runs/small runs/small/export
END
