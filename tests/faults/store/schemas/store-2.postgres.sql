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
CREATE TABLE public.checkpoints (
    run_id character varying(64) NOT NULL,
    id character varying(255) NOT NULL,
    record text NOT NULL
);
CREATE TABLE public.deliveries (
    id character varying(255) NOT NULL,
    at character varying(40) NOT NULL
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
    record text NOT NULL
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
    digest character varying(64) NOT NULL,
    at character varying(40) NOT NULL,
    record text NOT NULL
);
ALTER TABLE ONLY public.events ALTER COLUMN seq SET DEFAULT nextval('public.events_seq_seq'::regclass);
ALTER TABLE ONLY public.records ALTER COLUMN id SET DEFAULT nextval('public.records_id_seq'::regclass);
ALTER TABLE ONLY public.transitions ALTER COLUMN id SET DEFAULT nextval('public.transitions_id_seq'::regclass);
INSERT INTO public.leases VALUES ('run:run-1qtvv3p97sw6', NULL, 1, '2026-11-25T22:50:45.717708+00:00', 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3812.603434516);
INSERT INTO public.leases VALUES ('run:run-1qtvv3tvfazf', NULL, 1, '2026-11-25T22:50:45.804195+00:00', 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3812.689922593);
INSERT INTO public.leases VALUES ('run:run-1qtvv3wk8c33', NULL, 1, '2026-11-25T22:50:45.860396+00:00', 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3812.746123341);
INSERT INTO public.leases VALUES ('run:run-1qtvv3y3jn2v', NULL, 1, '2026-11-25T22:50:45.911588+00:00', 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3812.797315216);
INSERT INTO public.leases VALUES ('run:run-1qtvv3zmj4w5', NULL, 1, '2026-11-25T22:50:45.955705+00:00', 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3812.841431681);
INSERT INTO public.leases VALUES ('run:run-1qtvv415y6th', NULL, 1, '2026-11-25T22:50:45.978933+00:00', 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3812.864660659);
INSERT INTO public.orchestrate_meta VALUES ('schema', '2');
INSERT INTO public.runs VALUES ('run-1qtvv3zmj4w5', 'orc-1qtvv3zmj4w5', 'refused', 'paper', 'file:///HOST', false, 'refused', 'failed', NULL, 'c1fa476d260e6fb3caaa1f21f5503820d445eec91612a66df13bed2e8e98f6c2', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T22:50:15.924928+00:00', '2026-11-25T22:50:15.958976+00:00', 1, false, true, '2026-11-25T22:50:15.964036+00:00', NULL, NULL, '{"id":"run-1qtvv3zmj4w5","ref":"orc-1qtvv3zmj4w5","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"refused"},"spec_hash":"c1fa476d260e6fb3caaa1f21f5503820d445eec91612a66df13bed2e8e98f6c2","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"refused","status":"failed","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:15.924928Z","updated_at":"2026-11-25T22:50:15.958976Z","started_at":null,"finished_at":"2026-11-25T22:50:15.958976Z","tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":{"message":"paper (400 bad): no such model","code":"bad","param":null},"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO public.runs VALUES ('run-1qtvv3wk8c33', 'orc-1qtvv3wk8c33', 'lost', 'paper', 'file:///HOST', false, 'outcome_unknown', 'submitting', NULL, '886441e25e5579baf3e21ff217af1d795617cf612fcf3c072475d3bae7304463', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T22:50:15.827450+00:00', '2026-11-25T22:50:15.861783+00:00', 1, false, false, '2026-11-25T22:50:15.866816+00:00', NULL, NULL, '{"id":"run-1qtvv3wk8c33","ref":"orc-1qtvv3wk8c33","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"lost"},"spec_hash":"886441e25e5579baf3e21ff217af1d795617cf612fcf3c072475d3bae7304463","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"outcome_unknown","status":"submitting","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:15.827450Z","updated_at":"2026-11-25T22:50:15.861783Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO public.runs VALUES ('run-1qtvv3tvfazf', 'orc-1qtvv3tvfazf', 'open', 'paper', 'file:///HOST', false, 'submitted', 'submitting', 'job-43bd92c7cba3', 'fae9783d49194a77e410280e2a07c0242bbd77de6901f8cadafd4c648ea2709a', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T22:50:15.771447+00:00', '2026-11-25T22:50:15.813572+00:00', 1, false, false, '2026-11-25T22:50:15.814620+00:00', NULL, NULL, '{"id":"run-1qtvv3tvfazf","ref":"orc-1qtvv3tvfazf","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"open"},"spec_hash":"fae9783d49194a77e410280e2a07c0242bbd77de6901f8cadafd4c648ea2709a","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"submitted","status":"submitting","raw_status":null,"job_id":"job-43bd92c7cba3","job_kind":null,"created_at":"2026-11-25T22:50:15.771447Z","updated_at":"2026-11-25T22:50:15.813572Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO public.runs VALUES ('run-1qtvv3p97sw6', 'orc-1qtvv3p97sw6', 'ended', 'paper', 'file:///HOST', false, 'submitted', 'succeeded', 'job-41a055eaadad', 'cbf4b196e68ff9183e6daaf6b7ba3a707427ef0f0ee9249736c7135721612fa5', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T22:50:15.625128+00:00', '2026-11-25T22:50:15.747016+00:00', 1, false, true, '2026-11-25T22:50:15.747820+00:00', NULL, NULL, '{"id":"run-1qtvv3p97sw6","ref":"orc-1qtvv3p97sw6","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"ended"},"spec_hash":"cbf4b196e68ff9183e6daaf6b7ba3a707427ef0f0ee9249736c7135721612fa5","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"submitted","status":"succeeded","raw_status":"done","job_id":"job-41a055eaadad","job_kind":null,"created_at":"2026-11-25T22:50:15.625128Z","updated_at":"2026-11-25T22:50:15.747016Z","started_at":null,"finished_at":"2026-11-25T22:50:15.747016Z","tuned_model":"m:tuned","trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO public.runs VALUES ('run-1qtvv3y3jn2v', 'orc-1qtvv3y3jn2v', 'unmade', 'paper', 'file:///HOST', false, 'outcome_unknown', 'submitting', NULL, '376c8fa0d5583fd29caebb55f326d2aef9524b2958437ba4aa7d44413b2d20c9', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T22:50:15.875180+00:00', '2026-11-25T22:50:15.912988+00:00', 1, false, false, '2026-11-25T22:50:15.915980+00:00', NULL, NULL, '{"id":"run-1qtvv3y3jn2v","ref":"orc-1qtvv3y3jn2v","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"unmade"},"spec_hash":"376c8fa0d5583fd29caebb55f326d2aef9524b2958437ba4aa7d44413b2d20c9","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"outcome_unknown","status":"submitting","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:15.875180Z","updated_at":"2026-11-25T22:50:15.912988Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO public.runs VALUES ('run-1qtvv415y6th', 'orc-1qtvv415y6th', 'uploaded', 'paper', 'file:///HOST', false, 'uploaded', 'submitting', NULL, '586548b8721935829c8b5f83d2bcb50640d704ecc2a5cba02b3dc447c05d6218', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T22:50:15.973226+00:00', '2026-11-25T22:50:15.991423+00:00', 0, false, false, '2026-11-25T22:50:15.996263+00:00', NULL, NULL, '{"id":"run-1qtvv415y6th","ref":"orc-1qtvv415y6th","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"uploaded"},"spec_hash":"586548b8721935829c8b5f83d2bcb50640d704ecc2a5cba02b3dc447c05d6218","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"uploaded","status":"submitting","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:15.973226Z","updated_at":"2026-11-25T22:50:15.991423Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO public.runs VALUES ('run-1qtvv424g65j', 'orc-1qtvv424g65j', 'intent', 'paper', 'file:///HOST', false, 'intent', 'submitting', NULL, '281263a8af4d1a9a3195324d710a4e9deb68359a363617947ce02e3e2674ede2', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T22:50:16.004731+00:00', '2026-11-25T22:50:16.004731+00:00', 0, false, false, '2026-11-25T22:50:16.005284+00:00', NULL, NULL, '{"id":"run-1qtvv424g65j","ref":"orc-1qtvv424g65j","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"intent"},"spec_hash":"281263a8af4d1a9a3195324d710a4e9deb68359a363617947ce02e3e2674ede2","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"intent","status":"submitting","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:16.004731Z","updated_at":"2026-11-25T22:50:16.004731Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO public.stamps VALUES ('run-1qtvv3p97sw6', 1, 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3782.600266521);
INSERT INTO public.stamps VALUES ('run-1qtvv3tvfazf', 1, 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3782.683658197);
INSERT INTO public.stamps VALUES ('run-1qtvv3wk8c33', 1, 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3782.740733719);
INSERT INTO public.stamps VALUES ('run-1qtvv3y3jn2v', 1, 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3782.792095491);
INSERT INTO public.stamps VALUES ('run-1qtvv3zmj4w5', 1, 'eedd9312-0171-4982-a16b-b8f68c8f33e8', 3782.833561888);
INSERT INTO public.transitions VALUES (1, 'run-1qtvv3p97sw6', '2026-11-25T22:50:15.625128+00:00', 'intent', 'submitting', NULL, 0, 'vm:157282:80e656', 'intent');
INSERT INTO public.transitions VALUES (2, 'run-1qtvv3p97sw6', '2026-11-25T22:50:15.691202+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (3, 'run-1qtvv3p97sw6', '2026-11-25T22:50:15.707551+00:00', 'submitting', 'submitting', NULL, 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (4, 'run-1qtvv3p97sw6', '2026-11-25T22:50:15.723245+00:00', 'submitted', 'submitting', NULL, 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (5, 'run-1qtvv3p97sw6', '2026-11-25T22:50:15.747016+00:00', 'submitted', 'succeeded', 'done', 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (6, 'run-1qtvv3tvfazf', '2026-11-25T22:50:15.771447+00:00', 'intent', 'submitting', NULL, 0, 'vm:157282:80e656', 'intent');
INSERT INTO public.transitions VALUES (7, 'run-1qtvv3tvfazf', '2026-11-25T22:50:15.786880+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (8, 'run-1qtvv3tvfazf', '2026-11-25T22:50:15.795026+00:00', 'submitting', 'submitting', NULL, 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (9, 'run-1qtvv3tvfazf', '2026-11-25T22:50:15.813572+00:00', 'submitted', 'submitting', NULL, 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (10, 'run-1qtvv3wk8c33', '2026-11-25T22:50:15.827450+00:00', 'intent', 'submitting', NULL, 0, 'vm:157282:80e656', 'intent');
INSERT INTO public.transitions VALUES (11, 'run-1qtvv3wk8c33', '2026-11-25T22:50:15.843719+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (12, 'run-1qtvv3wk8c33', '2026-11-25T22:50:15.852750+00:00', 'submitting', 'submitting', NULL, 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (13, 'run-1qtvv3wk8c33', '2026-11-25T22:50:15.861783+00:00', 'outcome_unknown', 'submitting', NULL, 1, 'vm:157282:80e656', 'paper: the answer to the create request was lost (connection reset); the job may exist under ref orc-1qtvv3wk8c33');
INSERT INTO public.transitions VALUES (14, 'run-1qtvv3y3jn2v', '2026-11-25T22:50:15.875180+00:00', 'intent', 'submitting', NULL, 0, 'vm:157282:80e656', 'intent');
INSERT INTO public.transitions VALUES (15, 'run-1qtvv3y3jn2v', '2026-11-25T22:50:15.892067+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (16, 'run-1qtvv3y3jn2v', '2026-11-25T22:50:15.901394+00:00', 'submitting', 'submitting', NULL, 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (17, 'run-1qtvv3y3jn2v', '2026-11-25T22:50:15.912988+00:00', 'outcome_unknown', 'submitting', NULL, 1, 'vm:157282:80e656', 'paper: the answer to the create request was lost (reset); the job may exist under ref r');
INSERT INTO public.transitions VALUES (18, 'run-1qtvv3zmj4w5', '2026-11-25T22:50:15.924928+00:00', 'intent', 'submitting', NULL, 0, 'vm:157282:80e656', 'intent');
INSERT INTO public.transitions VALUES (19, 'run-1qtvv3zmj4w5', '2026-11-25T22:50:15.940739+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (20, 'run-1qtvv3zmj4w5', '2026-11-25T22:50:15.943883+00:00', 'submitting', 'submitting', NULL, 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (21, 'run-1qtvv3zmj4w5', '2026-11-25T22:50:15.958976+00:00', 'refused', 'failed', NULL, 1, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (22, 'run-1qtvv415y6th', '2026-11-25T22:50:15.973226+00:00', 'intent', 'submitting', NULL, 0, 'vm:157282:80e656', 'intent');
INSERT INTO public.transitions VALUES (23, 'run-1qtvv415y6th', '2026-11-25T22:50:15.991423+00:00', 'uploaded', 'submitting', NULL, 0, 'vm:157282:80e656', NULL);
INSERT INTO public.transitions VALUES (24, 'run-1qtvv424g65j', '2026-11-25T22:50:16.004731+00:00', 'intent', 'submitting', NULL, 0, 'vm:157282:80e656', 'intent');
INSERT INTO public.uploads VALUES ('paper', 'file:///HOST', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', '2026-11-25T22:50:15.989775+00:00', '{"provider":"paper","digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","train_id":"file-dddddddd","validation_id":null,"details":{}}');
SELECT pg_catalog.setval('public.events_seq_seq', 1, false);
SELECT pg_catalog.setval('public.records_id_seq', 1, false);
SELECT pg_catalog.setval('public.transitions_id_seq', 24, true);
ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (run_id, id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (id);
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
ALTER TABLE ONLY public.records
    ADD CONSTRAINT records_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_ref_key UNIQUE (ref);
ALTER TABLE ONLY public.stamps
    ADD CONSTRAINT stamps_pkey PRIMARY KEY (run_id, attempt, boot);
ALTER TABLE ONLY public.transitions
    ADD CONSTRAINT transitions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT uploads_pkey PRIMARY KEY (provider, host, digest);
CREATE UNIQUE INDEX events_once ON public.events USING btree (run_id, id);
CREATE INDEX ix_records_run_id ON public.records USING btree (run_id);
CREATE INDEX ix_transitions_run_id ON public.transitions USING btree (run_id);
CREATE INDEX runs_by_age ON public.runs USING btree (created_at);
CREATE INDEX runs_by_job ON public.runs USING btree (provider, job_id);
CREATE INDEX runs_open ON public.runs USING btree (closed, provider);
