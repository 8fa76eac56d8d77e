// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
)

// ticket lets one new member in, once, while Invite waits for it.
type ticket struct {
	// Address of Invite.
	Address string
	// Certificate is the SHA-256 of the one that Invite shows.
	Certificate []byte
	// Secret shows that the new member has the ticket.
	Secret []byte
	// TrustDomain of the store.
	TrustDomain string
}

const (
	ticketPrefix = "assay-join-"
	maxTicket    = 4096
	secretSize   = 32
)

func (t ticket) String() string {
	data, _ := json.Marshal(t) // strings and bytes always can be
	return ticketPrefix + base64.RawURLEncoding.EncodeToString(data)
}

func parseTicket(text string) (ticket, error) {
	var t ticket
	body, ok := strings.CutPrefix(strings.TrimSpace(text), ticketPrefix)
	if !ok || len(body) > maxTicket {
		return t, errors.New("this is not a ticket: copy all that `assay-server store invite` printed on another member")
	}
	data, err := base64.RawURLEncoding.DecodeString(body)
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err == nil {
		_, _, err = net.SplitHostPort(t.Address)
	}
	if err == nil && (len(t.Certificate) != 32 || len(t.Secret) != secretSize || t.TrustDomain == "") {
		err = errors.New("something is missing in it")
	}
	if err != nil {
		return ticket{}, fmt.Errorf("the ticket is damaged (%w): copy all of it", err)
	}
	return t, nil
}
