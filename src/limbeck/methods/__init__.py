"""One file per paper, beside its recipe. ``limbeck methods`` lists them, ``limbeck show NAME --source`` prints one."""
