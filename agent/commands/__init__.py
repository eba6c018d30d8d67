"""What the commands do, one module for each part of the flow; `agent.cli` only reads their arguments."""
