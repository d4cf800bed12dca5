package notify

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTimeout bounds the query at each scrape.
const scrapeTimeout = 2 * time.Second

// lastWebhook is read at each scrape.
type lastWebhook struct {
	ask  func(ctx context.Context) (time.Time, error)
	desc *prometheus.Desc
}

// NewLastWebhookMetric returns the collector of the last webhook's time; unknown, the gauge is missing.
func NewLastWebhookMetric(ask func(ctx context.Context) (time.Time, error)) prometheus.Collector {
	return &lastWebhook{ask: ask, desc: prometheus.NewDesc("purchase_relay_last_webhook_timestamp_seconds",
		"When Stripe's last webhook came, to any replica as far as the ledger tells (Unix time).", nil, nil)}
}

// Describe implements prometheus.Collector.
func (l *lastWebhook) Describe(ch chan<- *prometheus.Desc) { ch <- l.desc }

// Collect implements prometheus.Collector.
func (l *lastWebhook) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	at, err := l.ask(ctx)
	if err != nil || at.IsZero() {
		return
	}
	ch <- prometheus.MustNewConstMetric(l.desc, prometheus.GaugeValue, float64(at.UnixMilli())/1000)
}
