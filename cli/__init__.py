"""Commands and the REPL. Talks HTTP to a gateway; imports neither router nor node at start-up."""
