"""Would the tests notice? Small wrong changes of the mathematics and the engine, and whether a test fails for each."""
