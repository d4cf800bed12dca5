package notify

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const scrapeTimeout = 2 * time.Second

// lastWebhook is queried at each scrape.
type lastWebhook struct {
	query func(ctx context.Context) (time.Time, error)
	desc  *prometheus.Desc
}

// NewLastWebhookMetric returns a gauge of the last webhook's time. While the time is unknown there is no
// sample.
func NewLastWebhookMetric(query func(ctx context.Context) (time.Time, error)) prometheus.Collector {
	return &lastWebhook{query: query, desc: prometheus.NewDesc("purchase_relay_last_webhook_timestamp_seconds",
		"Time of Stripe's last webhook to any replica (Unix time).", nil, nil)}
}

// Describe implements prometheus.Collector.
func (l *lastWebhook) Describe(ch chan<- *prometheus.Desc) { ch <- l.desc }

// Collect implements prometheus.Collector.
func (l *lastWebhook) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	at, err := l.query(ctx)
	if err != nil || at.IsZero() {
		return
	}
	ch <- prometheus.MustNewConstMetric(l.desc, prometheus.GaugeValue, float64(at.UnixMilli())/1000)
}
