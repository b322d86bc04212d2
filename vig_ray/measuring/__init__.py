"""Measures of samples and tokens that scores don't hold, for strategies that VIG, VisNec and PRIOR compare with."""
