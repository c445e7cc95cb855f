"""What a file is does not hang on the length of its header."""

import torch
from safetensors.torch import save_file

from two_stream.pretrained.kinds import checkpoint_kind
from two_stream.pretrained.reading import read_metadata


def test_a_safetensors_header_of_any_length_is_known(tmp_path):
    firsts = set()
    for extra in range(0, 264, 8):  # every value the first byte of the length can have
        path = tmp_path / f"{extra}.safetensors"
        save_file({"w": torch.zeros(2)}, path, metadata={"note": "x" * extra})
        firsts.add(path.read_bytes()[0])
        assert checkpoint_kind(path) == "safetensors"
        assert read_metadata(path) == {"note": "x" * extra}
    assert 0x80 in firsts  # a pickle's first byte
