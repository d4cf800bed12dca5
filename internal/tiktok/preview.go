package tiktok

import (
	"purchase-relay/internal/message"
	"purchase-relay/internal/purchase"
)

// Preview returns the request body of a stored message: as sent for a delivered purchase, else, if sent is
// nil, as it would be sent. Placeholders in ‹…› replace settings that only the workers have.
func Preview(data []byte, sent *purchase.Sent) ([]byte, error) {
	envelope, err := message.DecodeEnvelope(data)
	if err != nil {
		return nil, err
	}
	pixel, testCode := "‹TIKTOK_PIXEL_ID›", ""
	if !envelope.Livemode {
		pixel = "‹TIKTOK_TEST_PIXEL_ID, else TIKTOK_PIXEL_ID›"
		testCode = "‹TIKTOK_TEST_EVENT_CODE, where it is set›"
	}
	page := "‹TIKTOK_PAGE_URL, where it is set›"
	if sent != nil {
		page, envelope.Keys, envelope.AmountMinor = sent.Page, envelope.Keys.Masked(sent.Keys), sent.Minor
	}
	c := Config{Payload: PayloadEvents, EventName: "CompletePayment", PageURL: page}
	return Body(c, pixel, testCode, []message.Envelope{envelope})
}
