"""Training in several processes: DDP, FSDP2, BatchNorm across processes."""
