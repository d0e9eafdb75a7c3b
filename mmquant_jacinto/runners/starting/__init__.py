"""Starting: what a run begins with: checkpoint, first ranges, teacher, rates."""
