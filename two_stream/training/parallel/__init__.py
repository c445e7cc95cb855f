"""Training in several processes: DDP, FSDP2 and BatchNorm across processes."""
