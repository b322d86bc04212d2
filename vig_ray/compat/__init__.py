"""What leans on the inside of other libraries: one small function for each thing, and a canary test in tests/compat.

    ray.py, vllm.py, transformers.py   private or alpha interfaces; each function says why it is needed

Nothing outside this folder uses such an interface (a test reads the sources). After raising a pin, run tests/compat
first. Each library is imported when a function is called: scoring works where only some of them are installed.
"""
