"""Commands that evaluate tuned models with metrics, judge models, human raters and live traffic."""
