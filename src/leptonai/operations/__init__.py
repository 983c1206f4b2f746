"""See everything, notice early: metrics, anomalies, watched training, predicted failures, incidents."""
