"""Measures of samples and tokens that scores don't hold, for the strategies that VIG, VisNec and PRIOR are held against."""
