"""The first cases of the fuzzers of readers; `make nightly` runs many more."""

import pytest
from fuzz_readers import READERS
from fuzz_readers import fuzz

pytestmark = pytest.mark.any_backend


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_changed_files_load_the_same_or_are_refused(reader, tmp_path):
    assert fuzz(reader, tmp_path, cases=100) == (100, {})
