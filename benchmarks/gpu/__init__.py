"""What `benchmarks/gpu.sh` runs, part by part: on a GPU at real sizes, on a CPU at a tiny one."""
