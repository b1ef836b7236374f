SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.accounts (
    provider character varying(64) NOT NULL,
    host character varying(255) NOT NULL,
    id character varying(255) NOT NULL,
    first_id character varying(255) NOT NULL
);
CREATE TABLE public.calibrations (
    judge character varying(64) NOT NULL,
    at character varying(40) NOT NULL,
    record text NOT NULL
);
CREATE TABLE public.checkpoints (
    run_id character varying(64) NOT NULL,
    id character varying(255) NOT NULL,
    record text NOT NULL
);
CREATE TABLE public.deliveries (
    id character varying(255) NOT NULL,
    at character varying(40) NOT NULL
);
CREATE TABLE public.deployment_transitions (
    id integer NOT NULL,
    deployment_id character varying(64) NOT NULL,
    at character varying(40) NOT NULL,
    state character varying(32) NOT NULL,
    raw_state text,
    attempt integer NOT NULL,
    actor text NOT NULL,
    note text
);
CREATE SEQUENCE public.deployment_transitions_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.deployment_transitions_id_seq OWNED BY public.deployment_transitions.id;
CREATE TABLE public.deployments (
    id character varying(64) NOT NULL,
    run_id character varying(64) NOT NULL,
    provider character varying(64) NOT NULL,
    host text NOT NULL,
    job_id text NOT NULL,
    sandbox boolean NOT NULL,
    state character varying(32) NOT NULL,
    over boolean NOT NULL,
    created_at character varying(40) NOT NULL,
    updated_at character varying(40) NOT NULL,
    attempt integer NOT NULL,
    record text NOT NULL
);
CREATE TABLE public.events (
    seq integer NOT NULL,
    run_id character varying(64) NOT NULL,
    id text NOT NULL,
    from_host boolean NOT NULL,
    at character varying(40) NOT NULL,
    record text NOT NULL
);
CREATE SEQUENCE public.events_seq_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.events_seq_seq OWNED BY public.events.seq;
CREATE TABLE public.leases (
    name character varying(255) NOT NULL,
    owner text,
    fence integer NOT NULL,
    expires_at character varying(40) NOT NULL,
    boot text NOT NULL,
    expires_uptime double precision NOT NULL
);
CREATE TABLE public.metrics (
    run_id character varying(64) NOT NULL,
    step integer NOT NULL,
    record text NOT NULL
);
CREATE TABLE public.notifications (
    run_id character varying(64) NOT NULL,
    channel character varying(255) NOT NULL,
    state character varying(16) NOT NULL,
    owner text NOT NULL,
    at character varying(40) NOT NULL
);
CREATE TABLE public.orchestrate_meta (
    key character varying(64) NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.pauses (
    account character varying(255) NOT NULL,
    since character varying(40) NOT NULL,
    until character varying(40) NOT NULL
);
CREATE TABLE public.ratings (
    seq integer NOT NULL,
    review_id character varying(64) NOT NULL,
    at character varying(40) NOT NULL,
    record text NOT NULL
);
CREATE SEQUENCE public.ratings_seq_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.ratings_seq_seq OWNED BY public.ratings.seq;
CREATE TABLE public.records (
    id integer NOT NULL,
    run_id character varying(64) NOT NULL,
    kind character varying(32) NOT NULL,
    at character varying(40) NOT NULL,
    record text NOT NULL
);
CREATE SEQUENCE public.records_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.records_id_seq OWNED BY public.records.id;
CREATE TABLE public.reviews (
    id character varying(64) NOT NULL,
    at character varying(40) NOT NULL,
    record text NOT NULL
);
CREATE TABLE public.runs (
    id character varying(64) NOT NULL,
    ref character varying(64) NOT NULL,
    name character varying(64),
    provider character varying(64) NOT NULL,
    host text NOT NULL,
    sandbox boolean NOT NULL,
    phase character varying(32) NOT NULL,
    status character varying(32) NOT NULL,
    job_id text,
    spec_hash character varying(64) NOT NULL,
    dataset_digest character varying(64) NOT NULL,
    created_at character varying(40) NOT NULL,
    updated_at character varying(40) NOT NULL,
    attempt integer NOT NULL,
    cancel_requested boolean NOT NULL,
    closed boolean NOT NULL,
    due_at character varying(40) NOT NULL,
    bill_usd text,
    committed_usd text,
    record text NOT NULL,
    account text,
    idempotency_key character varying(255),
    made_by text
);
CREATE TABLE public.stamps (
    run_id character varying(64) NOT NULL,
    attempt integer NOT NULL,
    boot character varying(255) NOT NULL,
    uptime double precision NOT NULL
);
CREATE TABLE public.transitions (
    id integer NOT NULL,
    run_id character varying(64) NOT NULL,
    at character varying(40) NOT NULL,
    phase character varying(32) NOT NULL,
    status character varying(32) NOT NULL,
    raw_status text,
    attempt integer NOT NULL,
    actor text NOT NULL,
    note text
);
CREATE SEQUENCE public.transitions_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.transitions_id_seq OWNED BY public.transitions.id;
CREATE TABLE public.uploads (
    provider character varying(64) NOT NULL,
    host character varying(255) NOT NULL,
    account character varying(255) NOT NULL,
    digest character varying(64) NOT NULL,
    at character varying(40) NOT NULL,
    record text NOT NULL
);
ALTER TABLE ONLY public.deployment_transitions ALTER COLUMN id SET DEFAULT nextval('public.deployment_transitions_id_seq'::regclass);
ALTER TABLE ONLY public.events ALTER COLUMN seq SET DEFAULT nextval('public.events_seq_seq'::regclass);
ALTER TABLE ONLY public.ratings ALTER COLUMN seq SET DEFAULT nextval('public.ratings_seq_seq'::regclass);
ALTER TABLE ONLY public.records ALTER COLUMN id SET DEFAULT nextval('public.records_id_seq'::regclass);
ALTER TABLE ONLY public.transitions ALTER COLUMN id SET DEFAULT nextval('public.transitions_id_seq'::regclass);
INSERT INTO public.events VALUES (1, 'run-1qrn0nq0kvxa', 'e1', true, '2026-01-01T00:00:00.000000+00:00', '{"id":"e1","at":"2026-01-01T00:00:00Z","level":"info","message":"hi","type":"message","step":null,"data":{}}');
INSERT INTO public.events VALUES (2, 'run-1qrn0np8m3x2', 'e1', true, '2026-01-01T00:00:00.000000+00:00', '{"id":"e1","at":"2026-01-01T00:00:00Z","level":"info","message":"hi","type":"message","step":null,"data":{}}');
INSERT INTO public.leases VALUES ('run:run-1qrn0nm4jpd1', NULL, 1, '2026-11-25T02:12:58.983044+00:00', '8a453b40-2d44-4751-8e18-003bac466c0a', 3228.462857359);
INSERT INTO public.leases VALUES ('run:run-1qrn0np8m3x2', NULL, 1, '2026-11-25T02:12:59.014485+00:00', '8a453b40-2d44-4751-8e18-003bac466c0a', 3228.494296136);
INSERT INTO public.leases VALUES ('run:run-1qrn0nq0kvxa', NULL, 1, '2026-11-25T02:12:59.044369+00:00', '8a453b40-2d44-4751-8e18-003bac466c0a', 3228.524180911);
INSERT INTO public.metrics VALUES ('run-1qrn0nq0kvxa', 1, '{"step":1,"values":{"train_loss":1.0},"at":null,"epoch":null}');
INSERT INTO public.metrics VALUES ('run-1qrn0np8m3x2', 1, '{"step":1,"values":{"train_loss":1.0},"at":null,"epoch":null}');
INSERT INTO public.orchestrate_meta VALUES ('schema', '4');
INSERT INTO public.runs VALUES ('run-1qrn0nm4jpd1', 'orc-1qrn0nm4jpd1', 's0', 'paper', 'file:///tmp/schema1/host', false, 'submitted', 'running', 'job-c36adcf3c3a0', 'a57d499edb39268db58e169b270657c3467b5ebb273d69302173ee1cab57a657', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T02:12:28.932010+00:00', '2026-11-25T02:12:29.059348+00:00', 1, false, false, '2026-11-25T02:12:29.059594+00:00', NULL, NULL, '{"id":"run-1qrn0nm4jpd1","ref":"orc-1qrn0nm4jpd1","provider":"paper","model":"m","spec":{"model":"m","train":"x.jsonl","suffix":"s0"},"spec_hash":"a57d499edb39268db58e169b270657c3467b5ebb273d69302173ee1cab57a657","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///tmp/schema1/host","sandbox":false,"phase":"submitted","status":"running","raw_status":"running","job_id":"job-c36adcf3c3a0","job_kind":null,"created_at":"2026-11-25T02:12:28.932010Z","updated_at":"2026-11-25T02:12:29.059348Z","started_at":null,"finished_at":null,"tuned_model":"ft:x","trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}', NULL, NULL, NULL);
INSERT INTO public.runs VALUES ('run-1qrn0np8m3x2', 'orc-1qrn0np8m3x2', 's1', 'paper', 'file:///tmp/schema1/host', false, 'submitted', 'succeeded', 'job-446eaa6ff176', '0306b05c8a19d80bccf477c93afab3adc60847fb89af13ffbe6326243438f55c', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T02:12:29.000919+00:00', '2026-11-25T02:12:29.059348+00:00', 1, false, true, '2026-11-25T02:12:29.064424+00:00', NULL, NULL, '{"id":"run-1qrn0np8m3x2","ref":"orc-1qrn0np8m3x2","provider":"paper","model":"m","spec":{"model":"m","train":"x.jsonl","suffix":"s1"},"spec_hash":"0306b05c8a19d80bccf477c93afab3adc60847fb89af13ffbe6326243438f55c","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///tmp/schema1/host","sandbox":false,"phase":"submitted","status":"succeeded","raw_status":"done","job_id":"job-446eaa6ff176","job_kind":null,"created_at":"2026-11-25T02:12:29.000919Z","updated_at":"2026-11-25T02:12:29.059348Z","started_at":null,"finished_at":"2026-11-25T02:12:29.059348Z","tuned_model":"ft:x","trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}', NULL, NULL, NULL);
INSERT INTO public.runs VALUES ('run-1qrn0nq0kvxa', 'orc-1qrn0nq0kvxa', 's2', 'paper', 'file:///tmp/schema1/host', false, 'submitted', 'succeeded', 'job-c1e7d2b4c057', '60097845da58ce5b27ba2f04a2c0cf9d87ae62bbf0db78d5f547e56ab808d200', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T02:12:29.024878+00:00', '2026-11-25T02:12:29.059348+00:00', 1, false, true, '2026-11-25T02:12:29.065227+00:00', NULL, NULL, '{"id":"run-1qrn0nq0kvxa","ref":"orc-1qrn0nq0kvxa","provider":"paper","model":"m","spec":{"model":"m","train":"x.jsonl","suffix":"s2"},"spec_hash":"60097845da58ce5b27ba2f04a2c0cf9d87ae62bbf0db78d5f547e56ab808d200","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///tmp/schema1/host","sandbox":false,"phase":"submitted","status":"succeeded","raw_status":"done","job_id":"job-c1e7d2b4c057","job_kind":null,"created_at":"2026-11-25T02:12:29.024878Z","updated_at":"2026-11-25T02:12:29.059348Z","started_at":null,"finished_at":"2026-11-25T02:12:29.059348Z","tuned_model":"ft:x","trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}', NULL, NULL, NULL);
INSERT INTO public.stamps VALUES ('run-1qrn0nm4jpd1', 1, '8a453b40-2d44-4751-8e18-003bac466c0a', 3198.460878312);
INSERT INTO public.stamps VALUES ('run-1qrn0np8m3x2', 1, '8a453b40-2d44-4751-8e18-003bac466c0a', 3198.491090977);
INSERT INTO public.stamps VALUES ('run-1qrn0nq0kvxa', 1, '8a453b40-2d44-4751-8e18-003bac466c0a', 3198.520747796);
INSERT INTO public.transitions VALUES (1, 'run-1qrn0nm4jpd1', '2026-11-25T02:12:28.932010+00:00', 'intent', 'submitting', NULL, 0, 'vm:25325:3c0251', 'intent');
INSERT INTO public.transitions VALUES (2, 'run-1qrn0nm4jpd1', '2026-11-25T02:12:28.972390+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (3, 'run-1qrn0nm4jpd1', '2026-11-25T02:12:28.980417+00:00', 'submitting', 'submitting', NULL, 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (4, 'run-1qrn0nm4jpd1', '2026-11-25T02:12:28.993469+00:00', 'submitted', 'submitting', NULL, 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (5, 'run-1qrn0np8m3x2', '2026-11-25T02:12:29.000919+00:00', 'intent', 'submitting', NULL, 0, 'vm:25325:3c0251', 'intent');
INSERT INTO public.transitions VALUES (6, 'run-1qrn0np8m3x2', '2026-11-25T02:12:29.009526+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (7, 'run-1qrn0np8m3x2', '2026-11-25T02:12:29.010796+00:00', 'submitting', 'submitting', NULL, 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (8, 'run-1qrn0np8m3x2', '2026-11-25T02:12:29.017138+00:00', 'submitted', 'submitting', NULL, 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (9, 'run-1qrn0nq0kvxa', '2026-11-25T02:12:29.024878+00:00', 'intent', 'submitting', NULL, 0, 'vm:25325:3c0251', 'intent');
INSERT INTO public.transitions VALUES (10, 'run-1qrn0nq0kvxa', '2026-11-25T02:12:29.037423+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (11, 'run-1qrn0nq0kvxa', '2026-11-25T02:12:29.040415+00:00', 'submitting', 'submitting', NULL, 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (12, 'run-1qrn0nq0kvxa', '2026-11-25T02:12:29.049273+00:00', 'submitted', 'submitting', NULL, 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (13, 'run-1qrn0nm4jpd1', '2026-11-25T02:12:29.059348+00:00', 'submitted', 'running', 'running', 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (14, 'run-1qrn0np8m3x2', '2026-11-25T02:12:29.059348+00:00', 'submitted', 'succeeded', 'done', 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.transitions VALUES (15, 'run-1qrn0nq0kvxa', '2026-11-25T02:12:29.059348+00:00', 'submitted', 'succeeded', 'done', 1, 'vm:25325:3c0251', NULL);
INSERT INTO public.uploads VALUES ('paper', 'file:///tmp/schema1/host', '', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T02:12:28.963446+00:00', '{"provider":"paper","digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","train_id":"file-dddddddd","validation_id":null,"details":{}}');
SELECT pg_catalog.setval('public.deployment_transitions_id_seq', 1, false);
SELECT pg_catalog.setval('public.events_seq_seq', 2, true);
SELECT pg_catalog.setval('public.ratings_seq_seq', 1, false);
SELECT pg_catalog.setval('public.records_id_seq', 1, true);
SELECT pg_catalog.setval('public.transitions_id_seq', 15, true);
ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (provider, host, id);
ALTER TABLE ONLY public.calibrations
    ADD CONSTRAINT calibrations_pkey PRIMARY KEY (judge);
ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (run_id, id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.deployment_transitions
    ADD CONSTRAINT deployment_transitions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.deployments
    ADD CONSTRAINT deployments_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.metrics
    ADD CONSTRAINT metrics_pkey PRIMARY KEY (run_id, step);
ALTER TABLE ONLY public.notifications
    ADD CONSTRAINT notifications_pkey PRIMARY KEY (run_id, channel);
ALTER TABLE ONLY public.orchestrate_meta
    ADD CONSTRAINT orchestrate_meta_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.pauses
    ADD CONSTRAINT pauses_pkey PRIMARY KEY (account);
ALTER TABLE ONLY public.ratings
    ADD CONSTRAINT ratings_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.records
    ADD CONSTRAINT records_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.reviews
    ADD CONSTRAINT reviews_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_ref_key UNIQUE (ref);
ALTER TABLE ONLY public.stamps
    ADD CONSTRAINT stamps_pkey PRIMARY KEY (run_id, attempt, boot);
ALTER TABLE ONLY public.transitions
    ADD CONSTRAINT transitions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT uploads_pkey PRIMARY KEY (provider, host, account, digest);
CREATE UNIQUE INDEX deployments_once ON public.deployments USING btree (provider, job_id) WHERE (NOT over);
CREATE UNIQUE INDEX events_once ON public.events USING btree (run_id, id);
CREATE INDEX ix_deployment_transitions_deployment_id ON public.deployment_transitions USING btree (deployment_id);
CREATE INDEX ix_deployments_run_id ON public.deployments USING btree (run_id);
CREATE INDEX ix_ratings_review_id ON public.ratings USING btree (review_id);
CREATE INDEX ix_records_run_id ON public.records USING btree (run_id);
CREATE INDEX ix_transitions_run_id ON public.transitions USING btree (run_id);
CREATE INDEX runs_by_age ON public.runs USING btree (created_at);
CREATE INDEX runs_by_job ON public.runs USING btree (provider, job_id);
CREATE UNIQUE INDEX runs_by_key ON public.runs USING btree (idempotency_key);
CREATE INDEX runs_open ON public.runs USING btree (closed, provider);
