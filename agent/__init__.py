"""The agent: the record, the store, the model runtime, memory, and the plan-act loop."""
