package queue

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTimeout bounds the request at each scrape.
const scrapeTimeout = 2 * time.Second

// backlog reads the consumer's figures, which cover all workers, from the server at each scrape.
type backlog struct {
	consumer                *Consumer
	waiting, unacknowledged *prometheus.Desc
}

// NewBacklogMetrics returns the collector of a consumer's backlog. It omits its gauges while NATS or the
// consumer is missing: a stale figure would look like a constant backlog.
func NewBacklogMetrics(c *Consumer) prometheus.Collector {
	return &backlog{
		consumer: c,
		waiting: prometheus.NewDesc("purchase_relay_consumer_pending",
			"Purchases that no worker has fetched.", nil, nil),
		unacknowledged: prometheus.NewDesc("purchase_relay_consumer_ack_pending",
			"Purchases fetched and not settled, or waiting for a retry.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (b *backlog) Describe(ch chan<- *prometheus.Desc) {
	ch <- b.waiting
	ch <- b.unacknowledged
}

// Collect implements prometheus.Collector.
func (b *backlog) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	waiting, unacknowledged, err := b.consumer.Pending(ctx)
	if err != nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(b.waiting, prometheus.GaugeValue, float64(waiting))
	ch <- prometheus.MustNewConstMetric(b.unacknowledged, prometheus.GaugeValue, float64(unacknowledged))
}
