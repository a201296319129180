"""Where a model looks: capture, targets, methods and the engine. Pure torch; no files, data sets or colours."""
