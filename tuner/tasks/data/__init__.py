"""Files become the records of a task, in three parts of which none has what another has."""
