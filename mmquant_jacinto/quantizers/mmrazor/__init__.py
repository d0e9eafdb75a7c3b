"""MMRazor's fake quantizers in place of ours, on a torch that it was not made for."""
