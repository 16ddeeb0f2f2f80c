"""Fuzzing of whatever reads what strangers wrote. Each target takes bytes and checks one property: what they stand for
is either read, and then is whole, or refused with an error of ours that can be told; nothing else, in bounded time.

    pip install -e '.[fuzz]'                       # atheris; Linux and Python 3.11
    python tests/fuzz/run.py config --seconds 60   # targets: config, artifact, request, engine

Coverage-guided, with the damage of `fmplex_tools.bench.faults.mutations` besides libFuzzer's own. A finding is kept in
results/fuzz/; `python tests/fuzz/run.py config FILE` shows it again. The same targets run without atheris, some hundred
cases each, in tests/unit/test_fuzz.py.
"""
