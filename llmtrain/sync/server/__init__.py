"""The server of the asynchronous modes, as pure functions of messages and time."""
