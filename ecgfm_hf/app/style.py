"""How the page looks: one sheet of styles, and fonts that every system has."""

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; padding: 40px 16px 32px !important; }
.gradio-container .html-container { padding: 0 !important; }
.ecg-title { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; padding: 14px 0 8px; }
.ecg-title h1 { font-size: 20px; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
.ecg-title span { color: var(--body-text-color-subdued); font-size: 14px; overflow-wrap: anywhere; }
.ecg-banner { position: fixed; top: 0; left: 0; right: 0; z-index: 50; margin: 0 !important; padding: 8px 16px;
  font-size: 14px; line-height: 20px; text-align: center; color: #5c2e00 !important; background: #fff1d6;
  border-bottom: 1px solid #eec88c; }
.ecg-banner strong, .ecg-banner span { color: #5c2e00 !important; }
.toast-wrap { top: 48px !important; }
.ecg-faint, .ecg-foot { color: var(--body-text-color-subdued); font-size: 13px; line-height: 1.5; }
.ecg-foot { margin: 0; }
.ecg-note { padding: 10px 14px; font-size: 14px; line-height: 1.5; border-radius: 6px; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
  border-left: 4px solid #c98a1b; }
.ecg-note ul { margin: 4px 0 0; padding-left: 20px; list-style: disc; }
.ecg-refused { border-left-color: #b3261e; }
.ecg-sheet { contain: inline-size; overflow-x: auto; background: white; border-radius: 6px;
  border: 1px solid var(--border-color-primary); }
.ecg-sheet img { display: block; width: 100%; min-width: 820px; height: auto; max-width: none; }
.ecg-downloads { display: flex; flex-wrap: wrap; gap: 8px; }
.ecg-downloads a.ecg-download { display: inline-block; padding: 8px 14px; font-size: 14px; text-decoration: none;
  color: var(--body-text-color); border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: var(--background-fill-secondary); }
.ecg-downloads a.ecg-download:hover, .ecg-downloads a.ecg-download:focus-visible { border-color: #0b5cad;
  color: #0b5cad; }
.ecg-scores h2 { font-size: 17px; font-weight: 650; margin: 8px 0 2px; }
.ecg-scores p { margin: 0 0 8px; }
.ecg-scores table, .ecg-scores tr { border: 0 !important; }
.ecg-scores table { width: 100%; border-collapse: collapse; font-size: 14px; line-height: 1.35; }
.ecg-scores th, .ecg-scores td { padding: 7px 8px; border: 0;
  border-bottom: 1px solid var(--border-color-primary) !important;
  vertical-align: middle; text-align: left; font-weight: 400; background: none; }
.ecg-scores thead th { color: var(--body-text-color-subdued); font-size: 12px; }
.ecg-scores tbody th { width: 40%; overflow-wrap: anywhere; }
.ecg-scores small { display: block; font-size: 12px; font-weight: 400; color: var(--body-text-color-subdued); }
.ecg-scores .ecg-number, .ecg-scores thead th:nth-child(n+3) { text-align: right; white-space: nowrap; width: 92px;
  font-variant-numeric: tabular-nums; }
.ecg-scores .ecg-positive th, .ecg-scores .ecg-positive td { font-weight: 650; }
.ecg-bar { position: relative; display: block; height: 8px; min-width: 70px; border-radius: 4px;
  background: var(--border-color-primary); }
.ecg-bar i { position: absolute; inset: 0 auto 0 0; border-radius: 4px; background: #7d8a96; }
.ecg-positive .ecg-bar i { background: #d55e00; }
.ecg-bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px;
  background: var(--body-text-color); }
.ecg-scores .ecg-narrow { display: none; }
@media (max-width: 640px) {
  .ecg-scores .ecg-narrow { display: block; }
  .gradio-container { padding: 36px 0 24px !important; }
  .gradio-container main { padding: 12px !important; }
  .ecg-title { padding-top: 10px; }
  .ecg-banner { font-size: 13px; padding: 6px 10px; }
  .ecg-banner span { display: none; }
  .ecg-scores thead { display: none; }
  .ecg-scores tr { display: grid !important; grid-template-columns: 1fr 80px 72px; padding: 8px 0;
    border-bottom: 1px solid var(--border-color-primary) !important; }
  .ecg-scores tbody th, .ecg-scores tbody td { width: auto !important; padding: 2px 4px; border: 0 !important; }
  .ecg-scores .ecg-with-bar { grid-column: 1 / -1; order: 9; padding: 6px 4px; }
}
"""

__all__ = ["CSS", "MONO", "SANS"]
